// The stream's rows on their way into a layer and out of it, in chunks, so that products run on some while
// others travel (Wang et al., "Overlap communication with dependent computation via decomposition", 2023;
// Flux, Chang et al. 2024). Bytes are those of the whole collective.
//
// Under sequence parallelism a chunk is one rank's rows. All messages go straight between their two ranks and
// are posted at once: around a ring each would wait, on its way, for every rank between them to stop
// multiplying. Without it, all_reduces of a part of the rows each.
#pragma once

#include <optional>

#include "phalanx/base/task.h"
#include "phalanx/comm/group.h"
#include "phalanx/ops/attention_tiles.h"

namespace phalanx {

/// All rows [T, …] of a stream of which each rank has its own: they come chunk by chunk, in the same number
/// on every rank.
class GatherChunks {
 public:
  /// All rows are here, as one chunk.
  explicit GatherChunks(Tensor all);
  /// This rank has `own`. In one chunk, or this rank's rows first, then those of the rank before it, …
  GatherChunks(Group& group, Tensor own, bool cut);

  int64_t rows() const { return rows_; }
  bool more() const { return next_ < chunks_.size(); }
  /// Waits for the next chunk.
  Task<RowRun> next();
  /// [T, …], of which the chunks so far count; after the first.
  const Tensor& all() const { return all_; }
  /// Waits for what is left, and gives all rows away.
  Task<Tensor> rest();

 private:
  struct Chunk {
    RowRun rows;
    std::optional<Work> work;  // none: they are here
  };
  int64_t rows_;
  Tensor all_;
  PooledVector<Chunk> chunks_;
  size_t next_ = 0;
};

/// Σ over ranks of y [T, …], as a stream. Each rank writes its summand chunk by chunk, and sends each on its
/// way; sums run in rank order, so that the bits are those of one whole collective.
class ReduceChunks {
 public:
  /// `y`, still unwritten, is the sum's only summand.
  explicit ReduceChunks(Tensor y);
  /// The sum goes to all ranks, or, if `scatter`, the rows of each rank to that rank. In one chunk, or cut:
  /// with `scatter` the own rows last.
  ReduceChunks(Group& group, Tensor y, bool scatter, bool cut);

  bool more() const { return next_ < chunks_.size(); }
  /// The rows of the chunk that is to be written, and their place.
  RowRun rows() const { return chunks_[next_]; }
  Tensor part() const { return y_.slice(rows().begin, rows().end); }
  /// They are written.
  void send();
  /// Waits; once, after all were sent.
  Task<Tensor> sum();

 private:
  enum class How : uint8_t { alone, all_reduce, reduce_scatter, messages };

  Tensor scattered() const;

  Group* group_ = nullptr;  // null: alone
  How how_ = How::alone;
  Tensor y_;
  Tensor received_;  // messages: others' summands of the own rows, in the order of the chunks
  PooledVector<RowRun> chunks_;
  PooledVector<Work> works_;
  size_t next_ = 0;
};

}  // namespace phalanx
