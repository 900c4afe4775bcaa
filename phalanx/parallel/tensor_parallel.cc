#include "phalanx/parallel/tensor_parallel.h"

#include "phalanx/parallel/context_rows.h"

namespace phalanx {

Task<Tensor> TensorParallel::gather(Tensor x) {
  if (!sequence_) co_return x;
  Work work = group_.all_gather(x);
  co_return co_await work;
}

Task<Tensor> TensorParallel::reduce(Tensor y) {
  if (ranks() == 1) co_return y;
  Work work = sequence_ ? group_.reduce_scatter(y) : group_.all_reduce(y);
  co_return co_await work;
}

GatherChunks TensorParallel::gather_chunks(Tensor x) {
  return sequence_ ? GatherChunks(group_, std::move(x), overlap_) : GatherChunks(std::move(x));
}

ReduceChunks TensorParallel::reduce_chunks(const Shape& shape, const Tensor& like) {
  Tensor y = Tensor::empty(shape, like.dtype(), like.device());
  return ranks() == 1 ? ReduceChunks(std::move(y)) : ReduceChunks(group_, std::move(y), sequence_, overlap_);
}

Task<Tensor> TensorParallel::join(Tensor own) {
  if (sequence_ || ranks() == 1) co_return own;
  Work work = group_.all_gather(own);
  co_return co_await work;
}

Tensor TensorParallel::own_offsets(const Tensor& offsets) const {
  const RowRun own = equal_run(offsets.span<const int64_t>().back(), rank(), ranks());
  return offsets_in(offsets, {&own, 1});
}

Tensor TensorParallel::own_rows(const Tensor& all) const {
  const RowRun own = equal_run(all.rows(), rank(), ranks());
  return all.slice(own.begin, own.end);
}

}  // namespace phalanx
