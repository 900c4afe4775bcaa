// Context parallelism: ranks of cp share out the rows of a microbatch, rank c has rows c·T/cp … (c+1)·T/cp −
// 1, and so long sequences and their activations. Only attention looks at other rows: there the ranks change
// from rows to heads and back (DeepSpeed-Ulysses, Jacobs et al. 2023, section 3.1). A causal mask costs all
// ranks alike, since each has some heads of all rows.
//
// Bytes: with n = (cp − 1)/cp · T/cp elements of width one, a microbatch sends from each rank, for each layer
// of H heads and G KV heads of width d, 2 · n · (2·H + 2·max(G, cp)) · d: q, k, v and y forward, their
// gradients backward. Where there are fewer KV heads than ranks, neighbours share one and it is sent to each.
#pragma once

#include "phalanx/base/task.h"
#include "phalanx/comm/mesh.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

class ContextParallel {
 public:
  explicit ContextParallel(Mesh& mesh) : group_(mesh.group(Axis::cp)) {}

  int ranks() const { return group_.size(); }
  int rank() const { return group_.rank(); }
  /// Of so many heads, those that a rank has where it has all rows.
  int heads(int all) const { return std::max(all / ranks(), 1); }

  /// x [T/cp, heads · d] of this rank's rows → [T, heads(heads) · d] of all rows.
  Task<Tensor> to_heads(Tensor x, int heads);
  /// The reverse, and its backward: y [T, heads(heads) · d] → [T/cp, heads · d]. What ranks that share a head
  /// send for it is summed.
  Task<Tensor> to_rows(Tensor y, int heads);

  /// offsets i64 [B+1] of sequences in T rows → those of their parts in the own rows.
  Tensor own_offsets(const Tensor& offsets) const;

 private:
  Group& group_;
};

/// Of a tensor [T, …], the rows of run `rank` of `ranks` equal ones. T is a multiple of `ranks`.
Tensor rows_in_run(const Tensor& all, int rank, int ranks);
/// offsets i64 [B+1] of sequences in T rows → those of their parts in that run.
Tensor offsets_in_run(const Tensor& offsets, int rank, int ranks);

}  // namespace phalanx
