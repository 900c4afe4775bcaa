// Which rows of a microbatch a rank of cp has.
//
// cp = ring × ulysses, and `ulysses` neighbouring ranks make one rank of the ring (USP, Fang & Zhao
// 2024). The rows are cut into 2·ring equal chunks, and ring rank r has chunks r and 2·ring − 1 − r: under
// a causal mask the later a row, the more it sees, so that all have the same work (zigzag, as in Llama 3's
// training: Dubey et al. 2024, section 3.3.2). A ring of one rank has all rows, in one run. Its Ulysses ranks
// have equal runs of those rows.
#pragma once

#include <span>

#include "phalanx/ops/attention_tiles.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// One rank's place. Ascending runs: a sequence's rows lie together in a rank's tensors, if with gaps.
struct ContextShare {
  int cp = 1;
  int rank = 0;     ///< of cp
  int ulysses = 1;  ///< ranks of cp that exchange heads; divides cp

  int ring() const { return cp / ulysses; }
  int ring_rank() const { return rank / ulysses; }
  int ulysses_rank() const { return rank % ulysses; }

  /// Its rows of `all`, a multiple of cp.
  RowRuns rows(int64_t all) const;
};

/// The rows of `all` that a rank of the ring has. Of an odd number the first chunk has the odd one.
RowRuns ring_rows(int64_t all, int ring, int ring_rank);
/// Of so many rows in equal runs, one for each rank, that of `rank`. `ranks` divides them.
RowRun equal_run(int64_t all, int rank, int ranks);

/// Of a tensor [T, …], the rows of those runs, one after the other: a slice if they are one run, else a copy.
Tensor rows_in(const Tensor& all, std::span<const RowRun> runs);
/// offsets i64 [B+1] of sequences in all rows → those of their parts in the (ascending) runs.
Tensor offsets_in(const Tensor& offsets, std::span<const RowRun> runs);

}  // namespace phalanx
