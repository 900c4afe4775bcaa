// What the members of a group share for direct.h: a ring of turns, one for each operation, with a cell for
// each rank.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "phalanx/comm/collectives.h"
#include "phalanx/comm/transport/direct.h"

namespace phalanx::direct {

inline constexpr uint64_t kTurns = 16;       // operations of one group that may be in flight, or a few less
inline constexpr uint64_t kTurnsToTell = 4;  // a rank tells the others each time it has finished so many
inline constexpr size_t kStageBytes = 4096;  // of a tensor that is copied into its cell
inline constexpr int64_t kChunkBytes = 64 << 10;

/// One rank's part of one turn. The first cache line is all that others read of a small operation; a rank
/// writes it before it raises `arrived`, and nobody touches it again before all have finished the turn.
struct Cell {
  alignas(kApart) std::atomic<uint64_t> arrived{0};  // turn + 1
  uint64_t sequence = 0;                             // in the group
  uint64_t packed = 0;                               // Fingerprint
  int64_t numel = 0;
  const std::byte* in = nullptr;  // where this rank's tensor lies
  std::byte* out = nullptr;       // where its result goes, if others may write there
  std::array<std::byte, 16> tiny{};

  alignas(kApart) std::atomic<uint32_t> claimed{0};  // of this rank's chunks; may overshoot
  std::atomic<uint32_t> completed{0};
  const int64_t* counts = nullptr;  // all_to_all: rows sent to each rank, rows expected from each
  std::array<Tensor, 3> keep;  // in, out, counts: so that memory outlives a rank that unwinds or is ahead

  alignas(kApart) std::array<std::byte, kStageBytes> stage;
};

/// All cells of a group.
class Board {
 public:
  explicit Board(int ranks)
      : ranks_(ranks), cells_(kTurns * static_cast<size_t>(ranks)), finished_(static_cast<size_t>(ranks)) {}

  int ranks() const { return ranks_; }
  Cell& cell(uint64_t turn, int rank) {
    return cells_[turn % kTurns * static_cast<size_t>(ranks_) + static_cast<size_t>(rank)];
  }
  /// Turns that a rank has finished, without gaps; kTurnsToTell − 1 more it may keep to itself.
  std::atomic<uint64_t>& finished(int rank) { return finished_[static_cast<size_t>(rank)].turns; }

  int closed = 0;  // members that have closed their links; under the registry's mutex

 private:
  struct alignas(kApart) Finished {
    std::atomic<uint64_t> turns{0};
  };
  int ranks_;
  std::vector<Cell> cells_;
  std::vector<Finished> finished_;
};

/// One rank's end of a board.
class Link final : public GroupLink {
 public:
  Link(Registry& registry, Board& board, const GroupInfo& group, Transport& transport);
  ~Link() override;

  Board& board() { return board_; }
  int rank() const { return rank_; }
  int world_rank(int member) const { return members_[static_cast<size_t>(member)]; }
  uint64_t take_turn() { return next_turn_++; }
  /// Everybody has finished the turn whose cells `turn` will reuse.
  bool free(uint64_t turn);
  /// This rank needs nothing of `turn` any more.
  void finish(uint64_t turn);
  void ring_others() noexcept;
  /// Room for the inputs and outputs of one reduction.
  std::vector<const std::byte*>& inputs() { return inputs_; }
  std::vector<std::byte*>& outputs() { return outputs_; }

 private:
  Registry& registry_;
  Board& board_;
  uint64_t group_;
  int rank_;
  std::vector<int> members_;
  std::vector<Bell*> others_;
  uint64_t next_turn_ = 0;
  uint64_t free_until_ = kTurns;  // turns below it are known to be free
  uint64_t finished_ = 0;         // without gaps
  uint64_t finished_ahead_ = 0;   // bit i: turn finished_ + i
  std::vector<const std::byte*> inputs_;
  std::vector<std::byte*> outputs_;
};

/// An operation's turn on the board.
class Turn {
 public:
  explicit Turn(const Call& call)
      : call_(call), link_(static_cast<Link&>(*call.group().link)), turn_(link_.take_turn()) {}

  Link& link() const { return link_; }
  const Call& call() const { return call_; }
  uint64_t number() const { return turn_; }
  int ranks() const { return link_.board().ranks(); }
  int me() const { return link_.rank(); }
  Cell& cell(int rank) const { return link_.board().cell(turn_, rank); }
  Cell& mine() const { return cell(link_.rank()); }
  bool free() const { return link_.free(turn_); }

  /// Publishes tensors that the others read and write in place.
  void publish(const Tensor& in, const Tensor& out) const;
  /// Publishes `bytes` by copy; nobody writes to this rank's memory.
  void publish_copy(const std::byte* data, size_t bytes) const;
  /// all_to_all: row counts (to each rank, from each) and tensors; by copy where they are small.
  void publish_rows(std::span<const int64_t> counts, const Tensor& in, const Tensor& out) const;
  /// publish_rows has copied that rank's rows.
  bool staged(int rank) const {
    const Cell& c = cell(rank);
    return static_cast<const void*>(c.counts) == c.stage.data();
  }
  /// The rest of publishing: my cell is filled.
  void arrive() const;
  /// CommError unless that rank, which has arrived, is in the same operation.
  void check(int rank) const;
  /// Drops what my cell holds; the others may go on to the turn that reuses it.
  void finish() const;

  /// inputs()[r] = rank r's tensor from byte `offset`.
  std::span<const std::byte* const> inputs(int64_t offset) const;
  std::span<std::byte* const> outputs(int64_t offset) const;

 private:
  const Call& call_;
  Link& link_;
  uint64_t turn_;
};

/// Waits until the turn's cells may be written.
class Free final : public CommWaitable {
 public:
  explicit Free(const Turn& turn) : turn_(turn) {}
  bool poll() override { return turn_.free(); }
  PooledVector<int> missing() const override;

 private:
  const Turn& turn_;
};

/// Waits until the ranks [first, last) have published.
class Arrivals final : public CommWaitable {
 public:
  explicit Arrivals(const Turn& turn) : Arrivals(turn, 0, turn.ranks()) {}
  Arrivals(const Turn& turn, int first, int last) : turn_(turn), next_(first), last_(last) {}
  bool poll() override;
  PooledVector<int> missing() const override;

 private:
  const Turn& turn_;
  int next_;
  int last_;
};

/// Waits until every rank has taken the tensors that the others published.
class Taken final : public CommWaitable {
 public:
  explicit Taken(const Turn& turn) : turn_(turn) {}
  /// peers[r] = rank r's tensor, which lives as long as anyone refers to it.
  void take(std::span<Tensor> peers);
  bool poll() override;
  PooledVector<int> missing() const override;

 private:
  bool has_taken(int rank) const { return turn_.cell(rank).completed.load(std::memory_order_seq_cst) > 0; }

  const Turn& turn_;
  int next_ = 0;
};

/// The chunks of a turn. Rank r begins with those of part r, then helps the others.
class Chunks final : public CommWaitable {
 public:
  Chunks(const Turn& turn, int64_t count) : turn_(turn), count_(count) {}
  /// do_chunk(i) for every chunk that this rank gets hold of.
  void work(FunctionRef<void(int64_t)> do_chunk);
  /// True when all chunks are done, whoever did them.
  bool poll() override;
  PooledVector<int> missing() const override;

 private:
  collectives::Range part(int rank) const { return collectives::part_of(count_, turn_.ranks(), rank); }

  const Turn& turn_;
  int64_t count_;
  int done_ = 0;  // parts [0, done_) are done
};

}  // namespace phalanx::direct
