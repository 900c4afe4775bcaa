#include "phalanx/comm/transport/mpi_transport.h"

#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <list>
#include <optional>
#include <vector>

#include "phalanx/base/parallel_for.h"
#include "phalanx/comm/transport/matcher.h"
#include "phalanx/comm/transport/mpi_library.h"
#include "phalanx/comm/transport/pieces.h"

namespace phalanx {
namespace {

constexpr size_t kInlineBytes = 8192;  // that travel with their header
constexpr int kYieldsBeforeNap = 200;
constexpr std::chrono::microseconds kNap(50);
constexpr std::chrono::milliseconds kAskForPages(200);  // of waiting, and then again after twice as long

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
  check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
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

class MpiTransport final : public Transport {
 public:
  MpiTransport(MpiLibrary& mpi, int rank, MpiSurroundings& around, Lifeline& lifeline)
      : mpi_(mpi),
        rank_(rank),
        ranks_(mpi.ranks()),
        crowded_(mpi.ranks_on_host() > available_cores()),
        around_(around),
        lifeline_(lifeline),
        matcher_(rank_, ranks_, around.pages[static_cast<size_t>(rank_)].recorder),
        incoming_(static_cast<size_t>(ranks_)),
        held_up_(static_cast<size_t>(ranks_), false) {
    const std::lock_guard lock(mpi_.mutex());
    for (int r = 0; r < ranks_; ++r) {
      if (r != rank_) expect_letter(r);
    }
  }
  ~MpiTransport() override {
    if (around_.failures.failed()) return;  // MPI is left as it is
    const std::lock_guard lock(mpi_.mutex());
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
  int rank_on_host() const override { return mpi_.rank_on_host(rank_); }

  void post(Exchange& exchange) override {
    matcher_.post(exchange);
    const std::lock_guard lock(mpi_.mutex());
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
    check_mpi(
        MPI_Isend(&o.letter, static_cast<int>(Letter::size(o.letter.header)), MPI_BYTE,
                  mpi_.process_of(m.peer), mpi_.letter_tag(rank_, m.peer), MPI_COMM_WORLD, &o.letter_request),
        "MPI_Isend");
    if (!all_in_letter) o.bytes.emplace(m.buffer);
  }

  void expect_letter(int from) {
    Incoming& in = incoming_[static_cast<size_t>(from)];
    check_mpi(MPI_Irecv(&in.letter, sizeof in.letter, MPI_BYTE, mpi_.process_of(from),
                        mpi_.letter_tag(from, rank_), MPI_COMM_WORLD, &in.letter_request),
              "MPI_Irecv");
  }

  // Moves everything that can move; true when something did.
  bool move() {
    const std::lock_guard lock(mpi_.mutex());
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
          check_mpi(MPI_Isend(at, n, MPI_BYTE, mpi_.process_of(o->peer), mpi_.bytes_tag(rank_, o->peer),
                              MPI_COMM_WORLD, &request),
                    "MPI_Isend");
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
      check_mpi(MPI_Irecv(at, n, MPI_BYTE, mpi_.process_of(from), mpi_.bytes_tag(from, rank_), MPI_COMM_WORLD,
                          &request),
                "MPI_Irecv");
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

  MpiLibrary& mpi_;
  int rank_;
  int ranks_;
  bool crowded_;
  MpiSurroundings& around_;
  Lifeline& lifeline_;
  Matcher matcher_;
  std::list<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
  std::vector<bool> held_up_;  // [ranks]: a message there has pieces that have not begun
  int64_t pieces_moved_ = 0;
  std::chrono::steady_clock::time_point waiting_since_{};
  std::chrono::milliseconds ask_after_ = kAskForPages;
};

}  // namespace

std::unique_ptr<Transport> mpi_transport(MpiLibrary& mpi, int rank, MpiSurroundings& around,
                                         Lifeline& lifeline) {
  return std::make_unique<MpiTransport>(mpi, rank, around, lifeline);
}

}  // namespace phalanx
