#include "phalanx/comm/transport/direct_board.h"

#include <cstring>

namespace phalanx::direct {
namespace {

// Begins to fetch the first line of a cell for writing. Only a hint.
void own_soon(const Cell& cell) {
#if defined(__x86_64__)
  asm volatile("prefetchw %0" : : "m"(cell));  // NOLINT(hicpp-no-assembler): the builtin would only read
#else
  __builtin_prefetch(&cell, 1);
#endif
}

}  // namespace

Registry::Registry() = default;
Registry::~Registry() = default;

std::unique_ptr<GroupLink> Registry::open(const GroupInfo& group, Transport& transport) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<Board>& board = boards_[group.id];
  if (!board) board = std::make_unique<Board>(group.size());
  return std::make_unique<Link>(*this, *board, group, transport);
}

void Registry::close(uint64_t group) noexcept {
  const std::lock_guard lock(mutex_);
  const auto board = boards_.find(group);
  if (++board->second->closed == board->second->ranks()) boards_.erase(board);
}

Link::Link(Registry& registry, Board& board, const GroupInfo& group, Transport& transport)
    : registry_(registry), board_(board), group_(group.id), rank_(group.rank), members_(group.members) {
  for (const int m : group.members) {
    if (m != transport.rank()) others_.push_back(&transport.page(m)->bell);
  }
  inputs_.resize(static_cast<size_t>(board.ranks()));
  outputs_.resize(static_cast<size_t>(board.ranks()));
}

Link::~Link() { registry_.close(group_); }

bool Link::free(uint64_t turn) {
  if (turn < free_until_) return true;
  uint64_t finished = board_.finished(0).load(std::memory_order_seq_cst);
  for (int r = 1; r < board_.ranks(); ++r) {
    finished = std::min(finished, board_.finished(r).load(std::memory_order_seq_cst));
  }
  free_until_ = finished + kTurns;
  return turn < free_until_;
}

// The others look only before they reuse cells, turns later: it is enough to tell them now and then.
void Link::finish(uint64_t turn) {
  const uint64_t told = finished_ / kTurnsToTell;
  finished_ahead_ |= uint64_t{1} << (turn - finished_);  // at most kTurns are in flight
  while (finished_ahead_ & 1) {
    finished_ahead_ >>= 1;
    ++finished_;
  }
  if (finished_ / kTurnsToTell == told) return;
  board_.finished(rank_).store(finished_, std::memory_order_seq_cst);
  ring_others();
}

void Link::ring_others() noexcept {
  for (Bell* bell : others_) bell->ring();
}

void Turn::publish(const Tensor& in, const Tensor& out) const {
  Cell& c = mine();
  c.in = in.raw();
  c.out = out.raw();
  c.keep[0] = in;
  c.keep[1] = out;
  c.claimed.store(0, std::memory_order_relaxed);
  c.completed.store(0, std::memory_order_relaxed);
  arrive();
}

void Turn::publish_copy(const std::byte* data, size_t bytes) const {
  Cell& c = mine();
  std::byte* to = bytes <= c.tiny.size() ? c.tiny.data() : c.stage.data();
  if (bytes > 0) std::memcpy(to, data, bytes);
  c.in = to;
  c.out = nullptr;
  arrive();
}

void Turn::publish_rows(std::span<const int64_t> counts, const Tensor& in, const Tensor& out) const {
  Cell& c = mine();
  if (counts.size_bytes() + in.bytes() <= c.stage.size()) {
    c.counts = reinterpret_cast<const int64_t*>(c.stage.data());
    std::memcpy(c.stage.data(), counts.data(), counts.size_bytes());
    c.in = c.stage.data() + counts.size_bytes();
    if (in.bytes() > 0) std::memcpy(c.stage.data() + counts.size_bytes(), in.raw(), in.bytes());
  } else {
    c.keep[0] = in;
    c.keep[2] = Tensor::of(Shape({static_cast<int64_t>(counts.size())}), counts);
    c.counts = c.keep[2].data<int64_t>();
    c.in = in.raw();
  }
  c.out = out.raw();
  c.keep[1] = out;
  c.claimed.store(0, std::memory_order_relaxed);
  c.completed.store(0, std::memory_order_relaxed);
  arrive();
}

void Turn::arrive() const {
  Cell& c = mine();
  c.sequence = call_.sequence();
  c.packed = call_.fingerprint().packed();
  c.numel = call_.fingerprint().numel;
  c.arrived.store(turn_ + 1, std::memory_order_seq_cst);
  link_.ring_others();
  // The others have read this rank's cell of a later turn when it was used last: take it back in time.
  own_soon(link_.board().cell(turn_ + 2, me()));
}

void Turn::check(int rank) const {
  const Cell& c = cell(rank);
  const Fingerprint& f = call_.fingerprint();
  if (c.sequence == call_.sequence() && c.packed == f.packed() && c.numel == f.numel) return;
  throw CommError(format("calls differ: rank {} is in {} #{}, rank {} in {} #{}", link_.world_rank(rank),
                         Fingerprint::unpacked(c.packed, c.numel).text(), c.sequence, link_.world_rank(me()),
                         f.text(), call_.sequence()));
}

void Turn::finish() const {
  Cell& c = mine();
  if (c.keep[1].defined()) {
    c.keep[0] = Tensor();  // the counts in keep[2] stay: a rank that comes late still reads them
    c.keep[1] = Tensor();
  }
  link_.finish(turn_);
}

std::span<const std::byte* const> Turn::inputs(int64_t offset) const {
  std::vector<const std::byte*>& in = link_.inputs();
  for (int r = 0; r < ranks(); ++r) in[static_cast<size_t>(r)] = cell(r).in + offset;
  return in;
}

std::span<std::byte* const> Turn::outputs(int64_t offset) const {
  std::vector<std::byte*>& out = link_.outputs();
  for (int r = 0; r < ranks(); ++r) out[static_cast<size_t>(r)] = cell(r).out + offset;
  return out;
}

PooledVector<int> Free::missing() const {
  PooledVector<int> ranks;
  for (int r = 0; r < turn_.ranks(); ++r) {
    if (turn_.link().board().finished(r).load() + kTurns <= turn_.number()) {
      ranks.push_back(turn_.link().world_rank(r));
    }
  }
  return ranks;
}

bool Arrivals::poll() {
  for (; next_ < last_; ++next_) {
    if (turn_.cell(next_).arrived.load(std::memory_order_seq_cst) != turn_.number() + 1) return false;
    turn_.check(next_);
  }
  return true;
}

PooledVector<int> Arrivals::missing() const {
  PooledVector<int> ranks;
  for (int r = next_; r < last_; ++r) {
    if (turn_.cell(r).arrived.load() != turn_.number() + 1) ranks.push_back(turn_.link().world_rank(r));
  }
  return ranks;
}

void Taken::take(std::span<Tensor> peers) {
  for (int r = 0; r < turn_.ranks(); ++r) peers[static_cast<size_t>(r)] = turn_.cell(r).keep[0];
  turn_.mine().completed.store(1, std::memory_order_seq_cst);
  turn_.link().ring_others();
}

bool Taken::poll() {
  while (next_ < turn_.ranks() && has_taken(next_)) ++next_;
  return next_ == turn_.ranks();
}

PooledVector<int> Taken::missing() const {
  PooledVector<int> ranks;
  for (int r = next_; r < turn_.ranks(); ++r) {
    if (!has_taken(r)) ranks.push_back(turn_.link().world_rank(r));
  }
  return ranks;
}

void Chunks::work(FunctionRef<void(int64_t)> do_chunk) {
  for (int i = 0; i < turn_.ranks(); ++i) {
    const int owner = (turn_.me() + i) % turn_.ranks();
    const collectives::Range chunks = part(owner);
    Cell& c = turn_.cell(owner);
    while (true) {
      if (c.claimed.load(std::memory_order_relaxed) >= chunks.size()) break;
      const int64_t mine = c.claimed.fetch_add(1, std::memory_order_relaxed);
      if (mine >= chunks.size()) break;
      do_chunk(chunks.begin + mine);
      if (c.completed.fetch_add(1, std::memory_order_seq_cst) + 1 == chunks.size())
        turn_.link().ring_others();
    }
  }
}

bool Chunks::poll() {
  for (; done_ < turn_.ranks(); ++done_) {
    if (turn_.cell(done_).completed.load(std::memory_order_seq_cst) != part(done_).size()) return false;
  }
  return true;
}

PooledVector<int> Chunks::missing() const {
  PooledVector<int> ranks;
  for (int r = done_; r < turn_.ranks(); ++r) {
    if (turn_.cell(r).completed.load() != part(r).size()) ranks.push_back(turn_.link().world_rank(r));
  }
  return ranks;
}

}  // namespace phalanx::direct
