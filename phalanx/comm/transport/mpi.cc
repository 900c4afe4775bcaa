#include "phalanx/comm/transport/mpi.h"

#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <list>
#include <memory>
#include <optional>
#include <vector>

#include "phalanx/base/parallel_for.h"
#include "phalanx/comm/lifeline/hub.h"
#include "phalanx/comm/lifeline/lifeline.h"
#include "phalanx/comm/transport/host_memory.h"
#include "phalanx/comm/transport/matcher.h"
#include "phalanx/comm/transport/pieces.h"

namespace phalanx {
namespace {

constexpr int kHeaderTag = 1;
constexpr int kBytesTag = 2;
constexpr size_t kInlineBytes = 8192;  // that travel with their header
constexpr int kYieldsBeforeNap = 200;
constexpr std::chrono::microseconds kNap(50);
constexpr std::chrono::milliseconds kAskForPages(200);  // of waiting, and then again after twice as long

void check(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int n = 0;
  MPI_Error_string(code, text.data(), &n);
  throw CommError(format("{} failed: {}", what, text.data()));
}

// A header, and a small message's bytes behind it.
struct Letter {
  MessageHeader header;
  std::array<std::byte, kInlineBytes> bytes;
  static size_t size(const MessageHeader& h) {
    return sizeof(MessageHeader) + (h.bytes <= kInlineBytes ? h.bytes : 0);
  }
};

bool is_done(MPI_Request& request) {
  int done = 0;
  check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
  return done != 0;
}

// A message on its way out.
struct Outgoing {
  Exchange* exchange;
  Exchange::Part* part;  // null once the exchange is given up
  int peer;
  Letter letter;
  MPI_Request letter_request = MPI_REQUEST_NULL;
  std::optional<Pieces<MPI_Request>> bytes;  // that follow the letter
};

// What comes from one rank: a letter, then perhaps its bytes.
struct Incoming {
  Letter letter;
  MPI_Request letter_request = MPI_REQUEST_NULL;
  std::optional<Pieces<MPI_Request>> bytes;  // that follow a letter
};

// Everything about MPI itself.
class MpiLibrary {
 public:
  MpiLibrary() {
    int provided = 0;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
    if (provided < MPI_THREAD_FUNNELED) throw Error("this MPI cannot be used beside other threads");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    MPI_Comm host = MPI_COMM_NULL;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &host);
    MPI_Comm_size(host, &ranks_on_host);
    MPI_Comm_free(&host);
  }

  // What rank 0 says, to all.
  static std::string from_rank_0(std::string text) {
    auto n = static_cast<int>(text.size());
    check(MPI_Bcast(&n, 1, MPI_INT, 0, MPI_COMM_WORLD), "MPI_Bcast");
    text.resize(static_cast<size_t>(n));
    check(MPI_Bcast(text.data(), n, MPI_CHAR, 0, MPI_COMM_WORLD), "MPI_Bcast");
    return text;
  }

  int rank = 0;
  int ranks = 1;
  int ranks_on_host = 1;
};

// What is known of the world beyond this process.
struct Surroundings {
  Surroundings(int rank, int ranks)
      : memory(rank, ranks), pages(static_cast<size_t>(ranks)), seen(pages.size(), false) {}

  HostMemory memory;      // of the ranks beside this one
  FailureBoard failures;  // this process's: the lifeline carries failures between processes
  std::vector<RankPage> pages;
  std::vector<bool> seen;  // pages[r] is rank r's, or was a moment ago
};

class MpiTransport final : public Transport {
 public:
  MpiTransport(const MpiLibrary& mpi, Surroundings& around, Lifeline& lifeline, bool crowded)
      : rank_(mpi.rank),
        ranks_(mpi.ranks),
        crowded_(crowded),
        around_(around),
        lifeline_(lifeline),
        matcher_(rank_, ranks_, around.pages[static_cast<size_t>(rank_)].recorder),
        incoming_(static_cast<size_t>(ranks_)),
        held_up_(static_cast<size_t>(ranks_), false) {
    for (int r = 0; r < ranks_; ++r) {
      if (r != rank_) expect_letter(r);
    }
  }
  ~MpiTransport() override {
    if (around_.failures.failed()) return;  // MPI is left as it is
    for (Incoming& in : incoming_) {
      if (in.letter_request == MPI_REQUEST_NULL) continue;
      MPI_Cancel(&in.letter_request);
      MPI_Request_free(&in.letter_request);
    }
  }
  MpiTransport(const MpiTransport&) = delete;
  MpiTransport& operator=(const MpiTransport&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return ranks_; }
  FailureBoard& failures() override { return around_.failures; }
  RankPage* page(int rank) override {
    const auto r = static_cast<size_t>(rank);
    return around_.seen[r] ? &around_.pages[r] : nullptr;
  }
  bool crowded() const override { return crowded_; }

  void post(Exchange& exchange) override {
    matcher_.post(exchange);
    for (Exchange::Part& part : exchange.parts) {
      if (part.message.kind == P2P::Kind::send) send(exchange, part);
    }
    move_out();
  }
  bool poll(Exchange& exchange) override {
    matcher_.check(exchange);
    return std::ranges::all_of(exchange.parts, &Exchange::Part::done);
  }
  void abandon(Exchange& exchange) noexcept override {
    matcher_.abandon(exchange);
    for (Outgoing& o : outgoing_) {
      if (o.exchange == &exchange) o.part = nullptr;
    }
  }

  bool shares_memory(const GroupInfo& group) const override { return around_.memory.shared(group); }
  Tensor shareable(const GroupInfo& group, Tensor x) const override {
    return around_.memory.shareable(group, std::move(x));
  }
  Task<> share(Call call, Tensor x, std::span<Tensor> peers) override {
    return around_.memory.share(call, std::move(x), peers);
  }

  void progress() override { move(); }
  void idle(FunctionRef<bool()> look_again, std::chrono::microseconds limit) override {
    const auto end = std::chrono::steady_clock::now() + limit;
    mirror_pages();
    for (int round = 0; std::chrono::steady_clock::now() < end; ++round) {
      if (move() || look_again()) {
        ask_after_ = kAskForPages;
        waiting_since_ = {};
        return;
      }
      if (round < kYieldsBeforeNap) {
        sched_yield();
      } else {
        usleep(static_cast<useconds_t>(kNap.count()));
      }
    }
  }
  // The others hear of it over the lifeline.
  void wake_all() noexcept override {
    try {
      const auto failure = failures().first();
      if (failure && failure->rank == rank_) lifeline_.fail(failure->message);
    } catch (const std::exception&) {  // then they find this rank's connection closed
    }
  }

 private:
  void send(Exchange& exchange, Exchange::Part& part) {
    const P2P& m = part.message;
    Outgoing& o = outgoing_.emplace_back(Outgoing{&exchange, &part, m.peer, {}});
    o.letter.header = MessageHeader(exchange, m);
    const size_t bytes = o.letter.header.bytes;
    const bool all_in_letter = bytes <= kInlineBytes;
    if (all_in_letter && bytes > 0) std::memcpy(o.letter.bytes.data(), m.buffer.raw(), bytes);
    check(MPI_Isend(&o.letter, static_cast<int>(Letter::size(o.letter.header)), MPI_BYTE, m.peer, kHeaderTag,
                    MPI_COMM_WORLD, &o.letter_request),
          "MPI_Isend");
    if (!all_in_letter) o.bytes.emplace(m.buffer);
  }

  void expect_letter(int from) {
    Incoming& in = incoming_[static_cast<size_t>(from)];
    check(MPI_Irecv(&in.letter, sizeof in.letter, MPI_BYTE, from, kHeaderTag, MPI_COMM_WORLD,
                    &in.letter_request),
          "MPI_Irecv");
  }

  // Moves everything that can move; true when something did.
  bool move() {
    const int64_t before = pieces_moved_;
    bool moved = move_out();
    for (int r = 0; r < ranks_; ++r) {
      while (r != rank_ && take(r)) moved = true;
    }
    return moved || pieces_moved_ != before;
  }

  // True when a message has gone. Those to one rank begin their pieces in turn, as that rank takes them.
  bool move_out() {
    bool gone = false;
    held_up_.assign(held_up_.size(), false);
    for (auto o = outgoing_.begin(); o != outgoing_.end();) {
      const auto peer = static_cast<size_t>(o->peer);
      if (o->bytes) {
        const auto start = [&](std::byte* at, int n) {
          MPI_Request request = MPI_REQUEST_NULL;
          check(MPI_Isend(at, n, MPI_BYTE, o->peer, kBytesTag, MPI_COMM_WORLD, &request), "MPI_Isend");
          return request;
        };
        if (o->bytes->move(!held_up_[peer], pieces_moved_, start, is_done)) o->bytes.reset();
        if (o->bytes && !o->bytes->all_begun()) held_up_[peer] = true;
      }
      if (o->bytes || !is_done(o->letter_request)) {
        ++o;
        continue;
      }
      if (o->part) o->part->done = true;
      o = outgoing_.erase(o);
      gone = true;
    }
    return gone;
  }

  // True when a message of that rank has gone a step further.
  bool take(int from) {
    Incoming& in = incoming_[static_cast<size_t>(from)];
    if (in.bytes) {
      if (!take_pieces(from)) return false;
      in.bytes.reset();
      matcher_.end(from);
      expect_letter(from);
      return true;
    }
    if (!is_done(in.letter_request)) return false;
    const size_t bytes = in.letter.header.bytes;
    Tensor to = matcher_.begin(from, in.letter.header);
    if (bytes <= kInlineBytes) {
      if (bytes > 0) std::memcpy(to.raw(), in.letter.bytes.data(), bytes);
      matcher_.end(from);
      expect_letter(from);
      return true;
    }
    in.bytes.emplace(std::move(to));
    take_pieces(from);
    return true;
  }

  bool take_pieces(int from) {
    const auto start = [&](std::byte* at, int n) {
      MPI_Request request = MPI_REQUEST_NULL;
      check(MPI_Irecv(at, n, MPI_BYTE, from, kBytesTag, MPI_COMM_WORLD, &request), "MPI_Irecv");
      return request;
    };
    return incoming_[static_cast<size_t>(from)].bytes->move(true, pieces_moved_, start, is_done);
  }

  // Whoever waits for long wants to see what the others do.
  void mirror_pages() {
    const auto now = std::chrono::steady_clock::now();
    if (waiting_since_ == std::chrono::steady_clock::time_point{}) waiting_since_ = now;
    if (now - waiting_since_ > ask_after_) {
      lifeline_.ask_for_pages();
      waiting_since_ = now;
      ask_after_ *= 2;
    }
    for (const auto& [rank, bytes] : lifeline_.take_pages()) {
      const auto r = static_cast<size_t>(rank);
      around_.pages[r].restore(bytes);
      around_.seen[r] = true;
    }
  }

  int rank_;
  int ranks_;
  bool crowded_;
  Surroundings& around_;
  Lifeline& lifeline_;
  Matcher matcher_;
  std::list<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
  std::vector<bool> held_up_;  // [ranks]: a message there has pieces that have not begun
  int64_t pieces_moved_ = 0;
  std::chrono::steady_clock::time_point waiting_since_{};
  std::chrono::milliseconds ask_after_ = kAskForPages;
};

// Rank 0's hub and everybody's connection to it.
struct Meeting {
  std::unique_ptr<Hub> hub;  // rank 0's
  LifelineOptions lifeline;
};

Meeting arrange_meeting(const MpiLibrary& mpi, const MpiOptions& options) {
  Meeting m;
  m.lifeline = {.rank = mpi.rank,
                .ranks = mpi.ranks,
                .meeting = options.meeting,
                .liveness = options.deadlines.liveness};
  std::vector<std::string> said;
  if (mpi.rank == 0) {
    const auto [listener, port] = listen_at("", 0);
    const std::string key = format("{} {}", process_name(), port);
    m.hub = std::make_unique<Hub>(HubOptions{.listener = listener,
                                             .ranks = mpi.ranks,
                                             .key = key,
                                             .meeting = options.meeting,
                                             .liveness = options.deadlines.liveness});
    said = own_addresses();
    said.push_back(format("{}", port));
    said.push_back(key);
  }
  said = unpack_texts(MpiLibrary::from_rank_0(pack_texts(said)));
  m.lifeline.key = said.back();
  said.pop_back();
  m.lifeline.port = std::stoi(said.back());
  said.pop_back();
  m.lifeline.addresses = said;
  return m;
}

}  // namespace

void run_mpi_rank(const MpiOptions& options, const RankBody& body) {
  const MpiLibrary mpi;
  const int cores = available_cores();
  Surroundings around(mpi.rank, mpi.ranks);
  RankPage& own = around.pages[static_cast<size_t>(mpi.rank)];
  around.seen[static_cast<size_t>(mpi.rank)] = true;
  Meeting meeting = arrange_meeting(mpi, options);
  Lifeline lifeline(meeting.lifeline);
  around.memory.meet(lifeline, "");
  lifeline.start({.on_failure = [&](int rank, const std::string& why) { around.failures.fail(rank, why); },
                  .page = [&own] { return own.snapshot(); }});
  const ThreadScope scope(options.threads_per_rank > 0 ? options.threads_per_rank
                                                       : std::max(1, cores / mpi.ranks_on_host));
  std::exception_ptr error;
  bool all_left = false;
  {
    MpiTransport transport(mpi, around, lifeline, mpi.ranks_on_host > cores);
    error = run_rank(transport, options.deadlines, body);
    lifeline.leave();
    all_left = lifeline.wait_for_the_others();
  }
  if (meeting.hub) meeting.hub->finish();
  if (error) std::rethrow_exception(error);
  if (all_left) MPI_Finalize();
}

}  // namespace phalanx
