#include "phalanx/ops/transpose.h"

#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/transpose.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/transpose-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

void transpose_kernel(int64_t rows, int64_t columns, const float* from, float* to, int64_t stride) {
  rows_to_lanes<float>(rows, columns, 1.0f, {from, columns}, {to, stride});
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {

HWY_EXPORT(transpose_kernel);

void transpose_rows(const float* w, int64_t columns, float* to, int64_t rows, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(transpose_kernel)
  (end - begin, columns, w + begin * columns, to + begin, transposed_stride(rows));
}

}  // namespace phalanx
#endif
