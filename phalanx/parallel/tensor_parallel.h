// Tensor parallelism: the features inside a layer are cut over tp (Megatron-LM, Shoeybi et al. 2019, section
// 3); and sequence parallelism: outside of layers the rows are (Korthikanti et al. 2022, section 4.2.2).
//
// Between layers runs the residual stream [T, D]: on every rank alike, or, under sequence parallelism, rank r
// has rows r·T/tp … (r+1)·T/tp − 1. Inside a layer each rank sees all T rows and computes some features of
// them. `gather` leads in and `reduce` out, and each is the other's backward.
//
// Bytes: with n = (tp − 1)/tp · T·D elements, a microbatch of a model of L dense layers sends, from each
// rank, (8·L + 4) · n: two all_reduces of a layer forward and two backward, and two for the vocabulary's
// ends; or, under sequence parallelism, (10·L + 5) · n: an all_reduce is a reduce-scatter and an all-gather,
// and backward gathers the inputs of layers again instead of keeping them. Besides, 24·T·(tp − 1) bytes for
// the loss. Products next to a gather or a reduce may be cut into chunks (stream_chunks.h): the bytes stay.
#pragma once

#include "phalanx/base/task.h"
#include "phalanx/comm/mesh.h"
#include "phalanx/parallel/stream_chunks.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// How the stream lies on tp, and how layers communicate.
struct StreamConfig {
  bool sequence = false;  ///< sequence parallelism: each rank has its own rows
  bool overlap = false;   ///< products in chunks, of which some travel meanwhile
};

class TensorParallel {
 public:
  TensorParallel(Mesh& mesh, const StreamConfig& config)
      : group_(mesh.group(Axis::tp)),
        sequence_(config.sequence && group_.size() > 1),
        overlap_(config.overlap && group_.size() > 1) {}

  int ranks() const { return group_.size(); }
  int rank() const { return group_.rank(); }
  bool sequence() const { return sequence_; }
  bool overlaps() const { return overlap_; }

  /// Stream to all rows: an all-gather under sequence parallelism, else x itself.
  Task<Tensor> gather(Tensor x);
  /// Σ over ranks of y [T, D], as a stream: a reduce-scatter, or an all_reduce (in place).
  Task<Tensor> reduce(Tensor y);

  /// The same for products: what they take, as it comes, and a summand's place, which they write. One chunk,
  /// or several if they overlap. Both start to communicate at once.
  GatherChunks gather_chunks(Tensor x);
  ReduceChunks reduce_chunks(const Shape& shape, const Tensor& like);

  /// What belongs to the stream's rows here, of a tensor [T, …] that all ranks have alike.
  Tensor stream_rows(const Tensor& all) const { return sequence_ ? own_rows(all) : all; }

  /// For a layer that cuts rows, not features (experts): this rank's own rows of the stream.
  Tensor split(const Tensor& x) const { return sequence_ ? x : own_rows(x); }
  /// Back to the stream; backward of split, as split is of this.
  Task<Tensor> join(Tensor own);
  /// Rows r·T/tp … of a tensor [T, …] that all ranks have alike. T is a multiple of tp.
  Tensor own_rows(const Tensor& all) const;
  /// offsets i64 [B+1] of sequences in T rows → those of their parts in the own rows.
  Tensor own_offsets(const Tensor& offsets) const;

  Group& group() { return group_; }

 private:
  Group& group_;
  bool sequence_;
  bool overlap_;
};

}  // namespace phalanx
