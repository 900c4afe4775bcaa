// What benches of CUDA ops share: times on the GPU, random tensors, and a table of bytes a second beside a
// plain copy's.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <random>

#include "bench/report.h"
#include "phalanx/ops/cast.h"
#include "phalanx/tensor/cuda_check.cuh"
#include "phalanx/tensor/stream.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx::bench {

inline constexpr Device kGpu = cuda_device(0);

// Milliseconds on the GPU, the median of 11 calls after 3.
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

// Random elements: a block of them, repeated.
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

inline Tensor random_ids(int64_t n, int64_t below) {
  std::mt19937 engine(2);
  const Tensor t = Tensor::empty({n}, DType::i32);
  for (int32_t& id : t.span<int32_t>()) id = static_cast<int32_t>(engine() % static_cast<uint64_t>(below));
  return t.to(kGpu);
}

class Table {
 public:
  explicit Table(Report& report) : report_(report) {}

  // An op that moves so many f32, or other elements, at least.
  void moves(const std::string& op, const std::string& shape, int64_t elements,
             const std::function<void()>& f, DType dtype = DType::f32) {
    const double ms = milliseconds(f);
    const auto bytes = static_cast<double>(elements) * static_cast<double>(dtype_size(dtype));
    const double gb_s = bytes / ms / 1e6;
    if (copy_gb_s_ == 0) copy_gb_s_ = gb_s;
    report_.add({{"op", op},
                 {"shape", shape},
                 {"ms", ms},
                 {"GB/s", gb_s},
                 {"of a copy", gb_s / copy_gb_s_},
                 {"TFLOP/s", "-"}});
  }
  void multiplies(const std::string& op, const std::string& shape, double operations,
                  const std::function<void()>& f) {
    const double ms = milliseconds(f);
    report_.add({{"op", op},
                 {"shape", shape},
                 {"ms", ms},
                 {"GB/s", "-"},
                 {"of a copy", "-"},
                 {"TFLOP/s", operations / ms / 1e9}});
  }

 private:
  Report& report_;
  double copy_gb_s_ = 0;
};

inline void copies(Table& table) {
  const int64_t n = 1 << 28;
  const Tensor from = random({n}, DType::f32);
  const Tensor to = Tensor::empty({n}, DType::f32, kGpu);
  table.moves("copy", "1 GiB", 2 * n, [&] { copy_into(to, from); });
}

}  // namespace phalanx::bench
