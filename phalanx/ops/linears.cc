#include "phalanx/ops/linears.h"

#include <algorithm>

#include "phalanx/ops/few_rows.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/rmsnorm.h"

namespace phalanx {

void linears_into(const Tensor& x, std::span<const LinearOf> linears, const RowNorm& norm) {
  if constexpr (kHaveCuda) {
    if (x.on_cuda() && cuda::multiply_few_rows(x, linears, norm)) return;
  }
  if (norm.w_K.defined()) return linears_into(rmsnorm(x, norm.w_K, norm.eps).y_TD, linears);
  for (const LinearOf& l : linears) linear_into(l.y_MN, x, l.w_NK, l.b_N, l.also_MN);
}

}  // namespace phalanx
