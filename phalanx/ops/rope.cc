#include "phalanx/ops/rope.h"

#include <algorithm>

#include "phalanx/base/pooled.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/rope_angles.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/rope.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

/// Heads of a row, of which the last `turning` columns turn.
struct Heads {
  int64_t width;
  int64_t head_dim;
  int64_t turning;
};

/// Turns all pairs of a row by the angles, forth (1) or back (−1).
template <class T>
void rotate_row(T* row, const Heads& heads, const T* angles, T direction) {
  const hn::ScalableTag<T> d;
  const int64_t half = heads.turning / 2;
  for (int64_t end = heads.head_dim; end <= heads.width; end += heads.head_dim) {
    T* const head = row + end - heads.turning;
    for_lanes(d, half, [&](auto at, int64_t i) PHX_LANES {
      const auto c = at.load(d, angles + i);
      const auto s = hn::Mul(hn::Set(d, direction), at.load(d, angles + half + i));
      const auto x = at.load(d, head + i);
      const auto y = at.load(d, head + half + i);
      at.store(hn::NegMulAdd(y, s, hn::Mul(x, c)), d, head + i);
      at.store(hn::MulAdd(x, s, hn::Mul(y, c)), d, head + half + i);
    });
  }
}

template <class T>
void rotate(const Tensor& x, const Tensor& positions, int64_t head_dim, const Rotation& rotation,
            double direction) {
  const auto at = positions.span<const int32_t>();
  if (at.empty()) return;
  const auto [least, most] = std::ranges::minmax(at);
  PHX_CHECK(least >= 0, "position {}", least);
  const auto table = angle_table<T>(rotation, int64_t{most} + 1);
  const Heads heads = {x.dim(1), head_dim, rotation.columns()};
  for_rows<T>(x.rows(), heads.width, [&](auto, int64_t r) {
    const int64_t position = at[static_cast<size_t>(r)];
    T* const row = x.data<T>() + r * heads.width;
    if (position < table->positions) {
      return rotate_row(row, heads, table->row(position), static_cast<T>(direction));
    }
    PooledVector<T> angles(static_cast<size_t>(heads.turning));
    compute_angles(rotation, position, angles.data());
    rotate_row<T>(row, heads, angles.data(), static_cast<T>(direction));
  });
}

void rotate_kernel(const Tensor& x, const Tensor& positions, int64_t head_dim, const Rotation& rotation,
                   double direction) {
  visit_float(x.dtype(), [&](auto t) { rotate<decltype(t)>(x, positions, head_dim, rotation, direction); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {

HWY_EXPORT(rotate_kernel);

void rotate(const Tensor& x, const Tensor& positions, int64_t head_dim, const Rotation& r, double direction) {
  PHX_CHECK(r.columns() > 0 && r.columns() <= head_dim && x.shape().rank() == 2 && x.dim(1) % head_dim == 0,
            "{} columns that turn of heads of {} in rows of {}", r.columns(), head_dim, x.shape());
  PHX_CHECK(positions.rows() == x.rows(), "{} positions for {} rows", positions.rows(), x.rows());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::rope_into(x, positions, head_dim, r, direction);
  }
  const TraceSpan span(TraceKind::elementwise, "rope", 2 * x.bytes());
  HWY_DYNAMIC_DISPATCH(rotate_kernel)(x, positions, head_dim, r, direction);
}

}  // namespace

void rope_into(Tensor x, const Tensor& positions, int64_t head_dim, const Rotation& rotation) {
  rotate(x, positions, head_dim, rotation, 1);
}

void rope_backward_into(Tensor dx, const Tensor& positions, int64_t head_dim, const Rotation& rotation) {
  rotate(dx, positions, head_dim, rotation, -1);
}

}  // namespace phalanx
#endif
