#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/fp8.cuh"
#include "phalanx/ops/quantize_scale.h"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = static_cast<int>(kScaleGroup) / kEight;  // that have a group
constexpr int kGroupsAtOnce = kThreads / kLanes;
constexpr int kGroups = kGroupsAtOnce * kInFlight;  // of a block

__device__ void keep(float scale, float* stored) { *stored = scale; }
__device__ void keep(float scale, uint8_t* stored) { *stored = power_above(scale); }

struct Rows8 {
  int64_t rows;
  int64_t width;
  uint32_t across;  // groups of a row
  uint32_t groups;  // of all
};

template <bool Whole, class T, class Scale>
__global__ void __launch_bounds__(kThreads) quantize_kernel(Rows8 s, const T* x, f8e4m3* q, Scale* scales) {
  constexpr ScaleFormat kFormat = sizeof(Scale) == sizeof(float) ? ScaleFormat::f32 : ScaleFormat::ue8m0;
  const uint32_t first = blockIdx.x * uint32_t{kGroups} + threadIdx.x / kLanes;
  const int64_t in_group = threadIdx.x % kLanes * kEight;
  Pack<T, kEight> packs[kInFlight];
  int64_t row[kInFlight];
  int64_t at[kInFlight];
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) {
    const uint32_t group = first + i * kGroupsAtOnce;  // behind the last: its row is too
    row[i] = group / s.across;
    at[i] = int64_t{group % s.across} * kScaleGroup + in_group;
    load_eight<Whole>(x, row[i], at[i], s.rows, s.width, packs[i]);
  }
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) {
    float v[kEight];
    widen_eight(packs[i], v);
    float largest = largest_of(v, kLeastMagnitude);
    for (int step = kLanes / 2; step > 0; step /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
    const uint32_t group = first + i * kGroupsAtOnce;
    if (group >= s.groups) continue;
    const GroupScale scale = group_scale(largest, kFormat);
    if (in_group == 0) keep(scale.scale, scales + group);
    store_eight<Whole>(q + row[i] * s.width, at[i], s.width, narrow_eight(v, scale.by));
  }
}

template <class Scale>
void quantize_into(const Tensor& x, const Quantized& to) {
  const int64_t groups = to.scales_TS.numel();
  PHX_CHECK(groups < (int64_t{1} << 31), "{} has more groups than a launch", x.shape());
  if (groups == 0) return;
  const Rows8 sizes = {.rows = x.dim(0),
                       .width = x.dim(1),
                       .across = static_cast<uint32_t>(to.scales_TS.dim(1)),
                       .groups = static_cast<uint32_t>(groups)};
  visit_quantized(x.dtype(), [&](auto t) {
    using T = decltype(t);
    with_whole_eights(x.dim(1), {&x, &to.q_TD}, [&](auto whole) {
      quantize_kernel<whole><<<blocks_for(groups, kGroups), kThreads, 0, current_stream().native()>>>(
          sizes, x.device_data<const T>(), to.q_TD.device_data<f8e4m3>(), to.scales_TS.device_data<Scale>());
    });
  });
  check_launch("quantize");
}

}  // namespace

Quantized quantize(const Tensor& x, ScaleFormat format) {
  const Shape scales = {x.dim(0), scale_groups(x.dim(1))};
  const DType scale = format == ScaleFormat::f32 ? DType::f32 : DType::u8;
  Quantized out = {Tensor::empty(x.shape(), DType::f8e4m3, x.device()),
                   Tensor::empty(scales, scale, x.device())};
  if (format == ScaleFormat::f32) {
    quantize_into<float>(x, out);
  } else {
    quantize_into<uint8_t>(x, out);
  }
  return out;
}

}  // namespace phalanx::cuda
