// What benchmarks of ops on a GPU share: their main, random tensors there, and times of what is queued.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "bench/report.h"
#include "phalanx/ops/cast.h"
#include "phalanx/tensor/cuda_check.cuh"
#include "phalanx/tensor/stream.h"

namespace phalanx::bench {

inline constexpr Device kGpu = cuda_device(0);

/// Milliseconds on the GPU, the median of 11 calls after 3.
inline double milliseconds(const std::function<void()>& f) {
  CUstream_st* const stream = current_stream().native();
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  cuda::check(cudaEventCreate(&begin), "cudaEventCreate");
  cuda::check(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<double> times;
  for (int i = -3; i < 11; ++i) {
    cuda::check(cudaEventRecord(begin, stream), "cudaEventRecord");
    f();
    cuda::check(cudaEventRecord(end, stream), "cudaEventRecord");
    current_stream().synchronise();
    float ms = 0;
    cuda::check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    if (i >= 0) times.push_back(ms);
  }
  (void)cudaEventDestroy(begin);
  (void)cudaEventDestroy(end);
  std::ranges::nth_element(times, times.begin() + 5);
  return times[5];
}

/// Random elements: a block of them, repeated.
inline Tensor random(const Shape& shape, DType dtype) {
  if (dtype == DType::bf16) {
    const Tensor t = Tensor::empty(shape, dtype, kGpu);
    narrow_into(t, random(shape, DType::f32));
    return t;
  }
  static std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  const Tensor t = Tensor::empty(shape, dtype);
  constexpr size_t kBlock = 1 << 16;
  visit_float(dtype, [&](auto zero) {
    const auto all = t.span<decltype(zero)>();
    for (size_t i = 0; i < all.size(); ++i) {
      all[i] = i < kBlock ? static_cast<decltype(zero)>(normal(engine)) : all[i - kBlock];
    }
  });
  return t.to(kGpu);
}

/// The main of a program: on a stream of the first GPU, `run` fills the report, whose name has the GPU's.
/// Gives the exit status.
inline int main_on_gpu(const char* name, std::span<char*> arguments,
                       const std::function<void(Report&)>& run) {
  try {
    (void)cuda_initialise({.reserve_bytes = size_t{16} << 30});
    const DeviceScope scope(kGpu);
    cudaDeviceProp gpu;
    cuda::check(cudaGetDeviceProperties(&gpu, kGpu.index), "cudaGetDeviceProperties");
    Report report(std::string(name) + ", " + gpu.name);
    run(report);
    return report.finish(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

}  // namespace phalanx::bench
