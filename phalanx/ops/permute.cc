#include "phalanx/ops/permute.h"

#include <algorithm>
#include <cstring>

#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/permute.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

// y (+)= weight · x, a row of n elements.
template <class T>
void add_scaled(const T* x, T weight, int64_t n, bool first, T* y) {
  const hn::ScalableTag<T> d;
  const auto w = hn::Set(d, weight);
  if (first) {
    for_lanes(d, n, [&](auto at, int64_t i) PHX_LANES { at.store(hn::Mul(w, at.load(d, x + i)), d, y + i); });
  } else {
    for_lanes(d, n, [&](auto at, int64_t i) PHX_LANES {
      at.store(hn::MulAdd(w, at.load(d, x + i), at.load(d, y + i)), d, y + i);
    });
  }
}

template <class T>
void gather_sums(const Rows& rows, const ExpertOrder& order, const Tensor& weights, const Rows& y) {
  const int64_t k = order.places.dim(1);
  const int64_t width = rows.data.dim(1);
  const int64_t* const places = order.places.data<int64_t>();
  const T* const in = rows.data.data<T>();
  const T* const wd = weights.defined() ? weights.data<T>() : nullptr;
  T* const yd = y.data.data<T>();
  for_rows<T>(y.count(), width * k, [&](auto, int64_t r) HWY_ATTR {
    bool first = true;
    for (int64_t s = r * k; s < (r + 1) * k; ++s) {
      if (places[s] < 0) continue;
      add_scaled(in + places[s] * width, wd ? wd[s] : T{1}, width, first, yd + r * width);
      first = false;
    }
    if (first) std::fill_n(yd + r * width, width, T{0});
  });
}

void unpermute_kernel(const Rows& rows, const ExpertOrder& order, const Tensor& weights, const Rows& y) {
  visit_float(y.data.dtype(), [&](auto t) { gather_sums<decltype(t)>(rows, order, weights, y); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(unpermute_kernel);
}  // namespace

ExpertOrder order_by_expert(const Rows& topk_idx, int experts) {
  if constexpr (kHaveCuda) {
    if (topk_idx.data.on_cuda()) return cuda::order_by_expert(topk_idx, experts);
  }
  const int64_t k = topk_idx.data.dim(1);
  const int64_t slots = topk_idx.count() * k;
  const TraceSpan span(TraceKind::elementwise, "order_by_expert", 3 * topk_idx.live_bytes());
  const ExpertOrder order = {
      Tensor::zeros({experts + 1}, DType::i64), Tensor::empty({topk_idx.capacity() * k}, DType::i64),
      Tensor::empty(topk_idx.data.shape(), DType::i64), Tensor::empty({1}, DType::i64)};
  const int64_t* const idx = topk_idx.data.data<int64_t>();
  int64_t* const offsets = order.offsets.data<int64_t>();
  int64_t* const slot_at = order.slots.data<int64_t>();
  int64_t* const place_of = order.places.data<int64_t>();
  for (int64_t s = 0; s < slots; ++s) {
    PHX_CHECK(idx[s] >= -1 && idx[s] < experts, "slot {} names expert {} of {}", s, idx[s], experts);
    if (idx[s] >= 0) ++offsets[idx[s] + 1];
  }
  for (int e = 0; e < experts; ++e) offsets[e + 1] += offsets[e];
  order.live.data<int64_t>()[0] = offsets[experts];
  // Fill from each expert's offset; afterwards offsets[e] is where e ends, that is where e+1 begins: shift
  // back.
  for (int64_t s = 0; s < slots; ++s) {
    place_of[s] = idx[s] < 0 ? -1 : offsets[idx[s]]++;
    if (place_of[s] >= 0) slot_at[place_of[s]] = s;
  }
  std::copy_backward(offsets, offsets + experts, offsets + experts + 1);
  offsets[0] = 0;
  return order;
}

Rows permute(const Rows& x, const ExpertOrder& order) {
  if constexpr (kHaveCuda) {
    if (x.data.on_cuda()) return cuda::permute(x, order);
  }
  const int64_t k = order.places.dim(1);
  const size_t row_bytes = static_cast<size_t>(x.data.row_size()) * dtype_size(x.data.dtype());
  const Rows y = {Tensor::empty(x.data.shape().with_rows(order.slots.rows()), x.data.dtype()), order.live};
  const TraceSpan span(TraceKind::elementwise, "permute", x.live_bytes() + y.live_bytes());
  const int64_t* const slots = order.slots.data<int64_t>();
  parallel_for(y.count(), block_rows(x.data.row_size()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto from = static_cast<size_t>(slots[i] / k) * row_bytes;
      std::memcpy(y.data.raw() + static_cast<size_t>(i) * row_bytes, x.data.raw() + from, row_bytes);
    }
  });
  return y;
}

Rows unpermute(const Rows& rows, const ExpertOrder& order, const Tensor& weights, const Rows& like) {
  if constexpr (kHaveCuda) {
    if (rows.data.on_cuda()) return cuda::unpermute(rows, order, weights, like);
  }
  const Rows y = rows_like(like, {0, rows.data.dim(1)}, rows.data.dtype());
  const TraceSpan span(TraceKind::elementwise, "unpermute", rows.live_bytes() + y.live_bytes());
  HWY_DYNAMIC_DISPATCH(unpermute_kernel)(rows, order, weights, y);
  return y;
}

}  // namespace phalanx
#endif
