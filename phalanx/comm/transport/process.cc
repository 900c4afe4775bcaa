#include "phalanx/comm/transport/process.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>

#include "phalanx/base/parallel_for.h"
#include "phalanx/comm/lifeline/lifeline.h"
#include "phalanx/comm/transport/host_memory.h"
#include "phalanx/comm/transport/matcher.h"
#include "phalanx/comm/transport/shared_segment.h"

namespace phalanx {
namespace {

// A message on its way into a ring.
struct Outgoing {
  Exchange* exchange;
  Exchange::Part* part;
  MessageHeader header;
  size_t header_sent = 0;
  size_t bytes_sent = 0;
};

std::span<const std::byte> rest_of(const MessageHeader& header, size_t done) {
  return std::as_bytes(std::span(&header, 1)).subspan(done);
}

// What goes to one rank: messages one after the other.
class Outbox {
 public:
  explicit Outbox(ByteRing ring) : ring_(ring) {}

  void add(Exchange& exchange, Exchange::Part& part) {
    messages_.push_back({&exchange, &part, MessageHeader(exchange, part.message)});
  }

  // Writes what fits; true when something did.
  bool push() {
    bool moved = false;
    while (!messages_.empty() && !torn_) {
      Outgoing& m = messages_.front();
      const size_t before = m.header_sent + m.bytes_sent;
      m.header_sent += ring_.write(rest_of(m.header, m.header_sent));
      if (m.header_sent == sizeof m.header) {
        const Tensor& t = m.part->message.buffer;
        m.bytes_sent += ring_.write(std::span(t.raw(), t.bytes()).subspan(m.bytes_sent));
      }
      moved = moved || m.header_sent + m.bytes_sent > before;
      if (m.header_sent < sizeof m.header || m.bytes_sent < m.header.bytes) break;
      m.part->done = true;
      messages_.pop_front();
    }
    return moved;
  }

  // A message that has begun cannot be taken back: nothing can follow it.
  void abandon(const Exchange& exchange) noexcept {
    if (!messages_.empty() && messages_.front().exchange == &exchange && messages_.front().header_sent > 0) {
      torn_ = true;
    }
    std::erase_if(messages_, [&](const Outgoing& m) { return m.exchange == &exchange; });
  }

 private:
  ByteRing ring_;
  std::deque<Outgoing> messages_;
  bool torn_ = false;
};

// What comes from one rank.
class Inbox {
 public:
  Inbox(int from, ByteRing ring) : from_(from), ring_(ring) {}

  // Reads what is there; true when something was.
  bool pull(Matcher& matcher) {
    bool moved = false;
    while (true) {
      if (!buffer_) {
        const auto raw = std::as_writable_bytes(std::span(&header_, 1)).subspan(header_read_);
        const size_t n = ring_.read(raw);
        header_read_ += n;
        moved = moved || n > 0;
        if (header_read_ < sizeof header_) return moved;
        buffer_ = matcher.begin(from_, header_);
        bytes_read_ = 0;
      }
      const size_t n = ring_.read(std::span(buffer_->raw(), buffer_->bytes()).subspan(bytes_read_));
      bytes_read_ += n;
      moved = moved || n > 0;
      if (bytes_read_ < header_.bytes) return moved;
      buffer_.reset();
      header_read_ = 0;
      matcher.end(from_);
    }
  }

 private:
  int from_;
  ByteRing ring_;
  MessageHeader header_;
  size_t header_read_ = 0;
  std::optional<Tensor> buffer_;  // of the message that is being read
  size_t bytes_read_ = 0;
};

class ProcessTransport final : public Transport {
 public:
  ProcessTransport(SharedSegment& shared, HostMemory& memory, int rank, int ranks, bool crowded)
      : shared_(shared),
        memory_(memory),
        rank_(rank),
        ranks_(ranks),
        crowded_(crowded),
        matcher_(rank, ranks, shared.page(rank).recorder) {
    for (int r = 0; r < ranks; ++r) {
      outboxes_.emplace_back(shared.ring(rank, r));
      inboxes_.emplace_back(r, shared.ring(r, rank));
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return ranks_; }
  FailureBoard& failures() override { return shared_.failures(); }
  RankPage* page(int rank) override { return &shared_.page(rank); }
  bool crowded() const override { return crowded_; }

  void post(Exchange& exchange) override {
    for (Exchange::Part& part : exchange.parts) {
      if (part.message.kind == P2P::Kind::send) {
        outboxes_[static_cast<size_t>(part.message.peer)].add(exchange, part);
      }
    }
    matcher_.post(exchange);
    move();
  }

  bool poll(Exchange& exchange) override {
    matcher_.check(exchange);
    return std::ranges::all_of(exchange.parts, &Exchange::Part::done);
  }

  void abandon(Exchange& exchange) noexcept override {
    matcher_.abandon(exchange);
    for (Outbox& box : outboxes_) box.abandon(exchange);
  }

  bool shares_memory(const GroupInfo& group) const override { return memory_.shared(group); }
  Tensor shareable(const GroupInfo& group, Tensor x) const override {
    return memory_.shareable(group, std::move(x));
  }
  Task<> share(Call call, Tensor x, std::span<Tensor> peers) override {
    return memory_.share(call, std::move(x), peers);
  }

  void progress() override { move(); }
  void idle(FunctionRef<bool()> look_again, std::chrono::microseconds limit) override {
    const auto look = [&] { return move() || look_again(); };
    Transport::idle(look, limit);
  }

 private:
  bool move() {
    bool any = false;
    for (int r = 0; r < ranks_; ++r) {
      if (r == rank_) continue;
      const auto peer = static_cast<size_t>(r);
      const bool pushed = outboxes_[peer].push();
      const bool pulled = inboxes_[peer].pull(matcher_);
      if (pushed || pulled) page(r)->bell.ring();
      any = any || pushed || pulled;
    }
    return any;
  }

  SharedSegment& shared_;
  HostMemory& memory_;
  int rank_;
  int ranks_;
  bool crowded_;
  Matcher matcher_;
  std::vector<Outbox> outboxes_;
  std::vector<Inbox> inboxes_;
};

// Rank 0 creates the segment and tells its name; when all have opened it the name goes.
SharedSegment meet(Lifeline& lifeline, HostMemory& memory, const ProcessPlace& place) {
  if (place.rank == 0) {
    SharedSegment segment = SharedSegment::create(place.ranks);
    memory.meet(lifeline, segment.name());
    lifeline.share("");
    segment.remove_name();
    return segment;
  }
  const std::vector<std::string> names = memory.meet(lifeline, "");
  SharedSegment segment = SharedSegment::open(names.front(), place.ranks);
  lifeline.share("");
  return segment;
}

}  // namespace

void join_process_ranks(const ProcessPlace& place, const RankBody& body) {
  const int cores = available_cores();
  std::optional<SharedSegment> shared;  // outlives the lifeline's thread
  Lifeline lifeline({.rank = place.rank,
                     .ranks = place.ranks,
                     .addresses = {place.address},
                     .port = place.port,
                     .key = place.key,
                     .meeting = place.meeting,
                     .liveness = place.deadlines.liveness});
  HostMemory memory(place.rank, place.ranks);
  SharedSegment& segment = shared.emplace(meet(lifeline, memory, place));
  const auto wake = [&segment, &place] {
    for (int r = 0; r < place.ranks; ++r) segment.page(r).bell.ring();
  };
  lifeline.start({.on_failure =
                      [&](int rank, const std::string& why) {
                        segment.failures().fail(rank, why);
                        wake();
                      },
                  .page = {}});
  const ThreadScope scope(place.threads_per_rank > 0 ? place.threads_per_rank
                                                     : std::max(1, cores / place.ranks));
  std::unique_ptr<Transport> transport =
      std::make_unique<ProcessTransport>(segment, memory, place.rank, place.ranks, place.ranks > cores);
  if (place.wrap) transport = place.wrap(std::move(transport));
  const std::exception_ptr error = run_rank(*transport, place.deadlines, body);
  if (error) {  // the hub need not wait for the others
    const auto failure = segment.failures().first();
    lifeline.fail(failure ? failure->message : segment.page(place.rank).report_text());
  }
  lifeline.leave();
  if (error) std::rethrow_exception(error);
}

}  // namespace phalanx
