#include "phalanx/parallel/tensor_parallel.h"

#include "phalanx/parallel/context_parallel.h"

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

Task<Tensor> TensorParallel::join(Tensor own) {
  if (sequence_ || ranks() == 1) co_return own;
  Work work = group_.all_gather(own);
  co_return co_await work;
}

Tensor TensorParallel::own_offsets(const Tensor& offsets) const {
  return offsets_in_run(offsets, rank(), ranks());
}

Tensor TensorParallel::own_rows(const Tensor& all) const { return rows_in_run(all, rank(), ranks()); }

}  // namespace phalanx
