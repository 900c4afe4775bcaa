#include "phalanx/ops/argmax.h"

#include <cmath>

#include "phalanx/base/parallel_for.h"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx {

void argmax_into(Tensor chosen, const Tensor& x) {
  PHX_CHECK(x.shape().rank() == 2 && x.dim(1) > 0 && chosen.numel() == x.rows(),
            "argmax of the rows of {} into {}", x.shape(), chosen.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::argmax_into(chosen, x);
  }
  visit_float(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    parallel_for(x.rows(), 1, [&](int64_t row, int64_t) {
      const T* const values = x.data<const T>() + row * x.dim(1);
      int64_t best = -1;
      for (int64_t i = 0; i < x.dim(1); ++i) {
        const bool greater = best < 0 ? !std::isnan(values[i]) : values[i] > values[best];
        if (greater) best = i;
      }
      chosen.data<int32_t>()[row] = static_cast<int32_t>(best < 0 ? 0 : best);
    });
  });
}

void advance_into(const DecodeRows& rows, const Tensor& chosen) {
  const int64_t count = chosen.numel();
  PHX_CHECK(rows.tokens.numel() == count && rows.positions.numel() == count && rows.text_BC.rows() == count,
            "{} tokens chosen for {} sequences, texts {}", count, rows.tokens.numel(), rows.text_BC.shape());
  if constexpr (kHaveCuda) {
    if (chosen.on_cuda()) return cuda::advance_into(rows, chosen);
  }
  for (int64_t b = 0; b < count; ++b) {
    int32_t& position = rows.positions.data<int32_t>()[b];
    PHX_CHECK(position >= -1 && position + 1 < rows.text_BC.dim(1), "position {} of a text of at most {}",
              position, rows.text_BC.dim(1));
    ++position;
    const int32_t token = chosen.data<const int32_t>()[b];
    rows.text_BC.data<int32_t>()[b * rows.text_BC.dim(1) + position] = token;
    rows.tokens.data<int32_t>()[b] = token;
  }
}

}  // namespace phalanx
