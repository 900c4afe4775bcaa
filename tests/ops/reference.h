// What op tests share: fresh random inputs, plain f64 values to compare with, finite differences, and runs on
// every vector instruction set and thread count.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "phalanx/base/parallel_for.h"
#include "phalanx/tensor/rows.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx::test {

/// A tensor's elements as f64, in row-major order: what references compute on.
using Values = std::vector<double>;
Values values(const Tensor& t);
/// The first `live` rows.
Values values(const Rows& rows);
Tensor tensor(const Shape& shape, DType dtype, const Values& values);
Tensor indices(const std::vector<int32_t>& values);
Tensor indices64(const Shape& shape, const std::vector<int64_t>& values);

/// A tensor of its own with the same elements.
Tensor copy(const Tensor& t);
Values plus(Values a, const Values& b);

/// Random inputs, new ones each run; the failing test's SCOPED_TRACE(random.trace()) shows the seed.
class Random {
 public:
  Random() : Random(std::random_device()()) {}
  explicit Random(uint64_t seed) : seed_(seed), engine_(seed) {}

  std::string trace() const { return "seed " + std::to_string(seed_); }
  double normal() { return normal_(engine_); }
  double uniform(double low, double high) { return std::uniform_real_distribution(low, high)(engine_); }
  int64_t integer(int64_t low, int64_t high) { return std::uniform_int_distribution(low, high)(engine_); }
  /// Normal elements with the given deviation and mean.
  Tensor tensor(const Shape& shape, DType dtype, double deviation = 1, double mean = 0);

 private:
  uint64_t seed_;
  std::mt19937_64 engine_;
  std::normal_distribution<double> normal_;
};

/// How far results may lie from exact ones: |got − want| ≤ relative · max(|want|, floor), where `floor` is
/// the size of what was added up (an exact 0 may come out as rounding errors of that size).
struct Tolerance {
  double relative = 0;
  double floor = 0;
};
/// `ulps` roundings of the dtype.
Tolerance within(double ulps, DType dtype, double floor = 0);
void expect_close(const Values& got, const Values& want, Tolerance tolerance, const std::string& what);
/// The largest magnitude.
double largest(const Values& values);
/// Bitwise equal, NaN and signs of zero included.
bool same_bits(const Tensor& a, const Tensor& b);

/// The derivative of f by each of x's elements (f64) by central differences; x is changed and restored.
Values numeric_gradient(Tensor x, const std::function<double()>& f, double step = 1e-5);
/// Analytic against numeric derivatives.
void expect_gradient(const Values& analytic, const Values& numeric, const std::string& what);
/// Σ a·b: a gradient check's scalar function of a tensor.
double dot(const Tensor& a, const Tensor& b);

/// Runs f on every instruction set that this machine has and kernels are compiled for; `fused` says whether
/// it has fused multiply-add, on which the stated errors of f32 functions rest.
void for_each_target(const std::function<void(bool fused)>& f);
/// The bits of f's results with 1, 2 and 3 threads are equal; f gives tensors.
void expect_same_bits_for_any_threads(const std::function<std::vector<Tensor>()>& f);

/// Both dtypes that ops compute in.
inline constexpr DType kFloats[] = {DType::f32, DType::f64};

}  // namespace phalanx::test
