#include "phalanx/comm/transport/threads.h"

#include <algorithm>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "phalanx/base/parallel_for.h"
#include "phalanx/comm/collectives.h"
#include "phalanx/comm/transport/direct.h"
#include "phalanx/tensor/stream_point.h"

namespace phalanx {
namespace {

// A message that was sent. It refers to the sender's tensor, so that the tensor lives until the receiver has
// copied it, even if the sender unwinds. On GPUs the receiver queues the copy behind what makes the tensor,
// and the sender what comes next behind the copy; no host waits.
struct Letter {
  int from = 0;
  Tag tag;
  Fingerprint fingerprint;
  Tensor buffer;
  StreamPoint ready;  // of the sender's stream
  StreamPoint taken;  // of the receiver's
  std::atomic<bool> delivered{false};
};

// Letters addressed to one rank, oldest first.
struct alignas(kApart) Mailbox {
  // How many wait at a time depends on timing: a steady state that allocates nothing needs room from the
  // start.
  Mailbox() { letters.reserve(256); }
  std::mutex mutex;
  std::vector<Letter*> letters;
  std::atomic<size_t> count{0};
};

// The letters of one rank, as many as it has ever needed at a time; used by its thread only.
struct Stationery {
  Stationery() : all(64) {
    unused.reserve(256);
    for (Letter& letter : all) unused.push_back(&letter);
  }
  std::deque<Letter> all;
  std::vector<Letter*> unused;
};

}  // namespace

struct ThreadWorld::Shared {
  explicit Shared(int ranks)
      : crowded(ranks > available_cores()),
        pages(static_cast<size_t>(ranks)),
        mailboxes(static_cast<size_t>(ranks)),
        stationery(static_cast<size_t>(ranks)) {}

  const bool crowded;
  FailureBoard failures;
  std::vector<RankPage> pages;
  std::vector<Mailbox> mailboxes;
  std::vector<Stationery> stationery;
  direct::Registry direct;
};

class ThreadTransport final : public Transport {
 public:
  ThreadTransport(ThreadWorld::Shared& shared, int rank)
      : shared_(shared), rank_(rank), stationery_(shared.stationery[static_cast<size_t>(rank)]) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(shared_.pages.size()); }
  FailureBoard& failures() override { return shared_.failures; }
  RankPage* page(int rank) override { return &shared_.pages[static_cast<size_t>(rank)]; }
  bool crowded() const override { return shared_.crowded; }

  std::unique_ptr<GroupLink> open_group(const GroupInfo& group) override {
    return group.size() > 1 ? shared_.direct.open(group, *this) : nullptr;
  }

  void post(Exchange& exchange) override {
    for (Exchange::Part& part : exchange.parts) {
      if (part.message.kind != P2P::Kind::send) continue;
      Letter* letter = new_letter();
      letter->from = rank_;
      letter->tag = exchange.tag;
      letter->fingerprint = exchange.fingerprint;
      letter->buffer = part.message.buffer;
      letter->ready.mark(letter->buffer);
      letter->delivered.store(false, std::memory_order_relaxed);
      part.state = letter;
      Mailbox& box = mailbox(part.message.peer);
      {
        const std::lock_guard lock(box.mutex);
        box.letters.push_back(letter);
        box.count.store(box.letters.size(), std::memory_order_seq_cst);
      }
      page(part.message.peer)->bell.ring();
    }
  }

  bool poll(Exchange& exchange) override {
    bool all = true;
    for (Exchange::Part& part : exchange.parts) {
      if (!part.done && part.message.kind == P2P::Kind::send) part.done = sent(part);
      if (!part.done && part.message.kind == P2P::Kind::recv) {
        part.done = is_next(exchange, part) && received(exchange, part);
      }
      all = all && part.done;
    }
    return all;
  }

  // Letters stay in their mailboxes, with the tensors they refer to.
  void abandon(Exchange&) noexcept override {}

  Task<> all_reduce(Call call, Tensor x, Reduce reduce) override {
    if (by_messages(call, x)) return Transport::all_reduce(call, std::move(x), reduce);
    return direct::all_reduce(call, std::move(x), reduce);
  }
  Task<> reduce_scatter(Call call, Tensor x, Tensor out, Reduce reduce) override {
    if (by_messages(call, x)) return Transport::reduce_scatter(call, std::move(x), std::move(out), reduce);
    return direct::reduce_scatter(call, std::move(x), std::move(out), reduce);
  }
  Task<> all_gather(Call call, Tensor x, Tensor out) override {
    if (by_messages(call, x)) return Transport::all_gather(call, std::move(x), std::move(out));
    return direct::all_gather(call, std::move(x), std::move(out));
  }
  Task<> all_to_all(Call call, Tensor x, Tensor out, PooledVector<int64_t> send_rows,
                    PooledVector<int64_t> recv_rows) override {
    const auto algorithm = by_messages(call, x) ? &collectives::all_to_all : &direct::all_to_all;
    return algorithm(call, std::move(x), std::move(out), std::move(send_rows), std::move(recv_rows));
  }
  Task<> broadcast(Call call, Tensor x, int root) override {
    if (by_messages(call, x)) return Transport::broadcast(call, std::move(x), root);
    return direct::broadcast(call, std::move(x), root);
  }
  Task<> barrier(Call call) override {
    return call.size() == 1 ? Transport::barrier(call) : direct::barrier(call);
  }
  bool shares_memory(const GroupInfo&) const override { return true; }
  Task<> share(Call call, Tensor x, std::span<Tensor> peers) override {
    if (call.size() == 1) return Transport::share(call, std::move(x), peers);
    return direct::share(call, std::move(x), peers);
  }

 private:
  // Tensors on GPUs are for their streams to read, not for the hosts' threads.
  static bool by_messages(const Call& call, const Tensor& x) { return call.size() == 1 || x.on_cuda(); }

  Mailbox& mailbox(int rank) { return shared_.mailboxes[static_cast<size_t>(rank)]; }

  Letter* new_letter() {
    if (stationery_.unused.empty()) return &stationery_.all.emplace_back();
    Letter* letter = stationery_.unused.back();
    stationery_.unused.pop_back();
    return letter;
  }

  bool sent(Exchange::Part& part) {
    auto* letter = static_cast<Letter*>(part.state);
    if (!letter->delivered.load(std::memory_order_seq_cst)) return false;
    letter->taken.pass(letter->buffer);
    letter->buffer = Tensor();
    stationery_.unused.push_back(letter);
    return true;
  }

  // Messages of one sender come in the order in which it sent them, so an earlier receive goes first; a
  // letter may have arrived since that one was looked at.
  static bool is_next(const Exchange& exchange, const Exchange::Part& part) {
    for (const Exchange::Part& earlier : exchange.parts) {
      if (&earlier == &part) return true;
      const P2P& m = earlier.message;
      if (!earlier.done && m.kind == P2P::Kind::recv && m.peer == part.message.peer) return false;
    }
    return true;
  }

  bool received(Exchange& exchange, Exchange::Part& part) {
    Mailbox& box = mailbox(rank_);
    if (box.count.load(std::memory_order_seq_cst) == 0) return false;
    Letter* letter = take(box, part.message.peer, exchange.tag);
    if (!letter) return false;
    const Tensor& to = part.message.buffer;
    if (letter->fingerprint != exchange.fingerprint || letter->buffer.bytes() != to.bytes()) {
      throw CommError(mismatch_text(letter->from, letter->fingerprint, letter->buffer.bytes(), rank_,
                                    exchange.fingerprint, to.bytes()));
    }
    if (to.bytes() > 0) {
      PHX_CHECK(to.on_cuda() == letter->buffer.on_cuda(), "a message from {} to {}",
                device_name(letter->buffer.device()), device_name(to.device()));
      letter->ready.pass(to);
      copy_bytes(to, letter->buffer);
      letter->taken.mark(to);
    }
    letter->delivered.store(true, std::memory_order_seq_cst);
    page(part.message.peer)->bell.ring();
    return true;
  }

  static Letter* take(Mailbox& box, int from, const Tag& tag) {
    const std::lock_guard lock(box.mutex);
    const auto found =
        std::ranges::find_if(box.letters, [&](const Letter* l) { return l->from == from && l->tag == tag; });
    if (found == box.letters.end()) return nullptr;
    Letter* letter = *found;
    box.letters.erase(found);
    box.count.store(box.letters.size(), std::memory_order_seq_cst);
    return letter;
  }

  ThreadWorld::Shared& shared_;
  int rank_;
  Stationery& stationery_;
};

ThreadWorld::ThreadWorld(int ranks) : shared_(std::make_unique<Shared>(ranks)) {
  PHX_CHECK(ranks > 0, "a world of {} ranks", ranks);
}
ThreadWorld::~ThreadWorld() = default;

int ThreadWorld::ranks() const { return static_cast<int>(shared_->pages.size()); }

std::unique_ptr<Transport> ThreadWorld::transport(int rank) {
  return std::make_unique<ThreadTransport>(*shared_, rank);
}

const FailureBoard& ThreadWorld::failures() const { return shared_->failures; }

void run_thread_ranks(const ThreadWorldOptions& options, const WrapTransport& wrap, const RankBody& body) {
  ThreadWorld world(options.ranks);
  const int threads = options.threads_per_rank > 0 ? options.threads_per_rank
                                                   : std::max(1, available_cores() / options.ranks);
  std::vector<std::exception_ptr> errors(static_cast<size_t>(options.ranks));
  std::vector<std::thread> ranks;
  for (int r = 0; r < options.ranks; ++r) {
    ranks.emplace_back([&, r] {
      const AllocatorScope memory;
      const ThreadScope scope(threads);
      const std::unique_ptr<Transport> transport = wrap(world.transport(r));
      errors[static_cast<size_t>(r)] = run_rank(*transport, options.deadlines, body);
    });
  }
  for (std::thread& t : ranks) t.join();
  const auto failure = world.failures().first();
  if (!failure) return;
  const std::exception_ptr error = errors[static_cast<size_t>(failure->rank)];
  if (error) std::rethrow_exception(error);
  throw CommError(failure->message);
}

void run_thread_ranks(const ThreadWorldOptions& options, const RankBody& body) {
  run_thread_ranks(
      options, [](std::unique_ptr<Transport> transport) { return transport; }, body);
}

}  // namespace phalanx
