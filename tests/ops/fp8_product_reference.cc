#include "tests/ops/fp8_product_reference.h"

#include <algorithm>
#include <cmath>

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

// In f32 each of a group's sums is wrong by 2^-24 of what was added up. Tensor cores line 32 products and the
// sum before them up with the largest, and cut each, and their sum, at 2^-13 of it.
Fp8Sum sum_reference(const Fp8Factor& a, const Fp8Factor& b, int64_t m, int64_t n) {
  constexpr int64_t kAtOnce = 32;
  const int64_t k = a.terms;
  Fp8Sum out;
  double magnitude = 0;
  for (int64_t g = 0; g * kScaleGroup < k; ++g) {
    double sum = 0;
    double wrong = 0;
    for (int64_t first = g * kScaleGroup; first < std::min(k, (g + 1) * kScaleGroup); first += kAtOnce) {
      double largest = std::abs(sum);
      double added = std::abs(sum);
      for (int64_t i = first; i < std::min(k, first + kAtOnce); ++i) {
        const double p = a.q[static_cast<size_t>(m * k + i)] * b.q[static_cast<size_t>(n * k + i)];
        sum += p;
        largest = std::max(largest, std::abs(p));
        added += std::abs(p);
      }
      wrong += OnDevice::on_gpu() ? (kAtOnce + 2) * 0x1p-13 * largest : kAtOnce * 0x1p-24 * added;
    }
    const double scale = a.scale(m, g) * b.scale(n, g);
    out.value += sum * scale;
    out.allowed += wrong * scale;
    magnitude += std::abs(sum) * scale;
  }
  out.allowed += static_cast<double>(k / kScaleGroup + 4) * 0x1p-23 * magnitude;
  return out;
}

}  // namespace

Fp8Factor fp8_factor(const Fp8Lines& lines) {
  const Tensor scales = lines.scales_SR.to(kCpu);
  return {lines.q_RK.dim(0), lines.q_RK.dim(1), fp8_values(lines.q_RK), [scales](int64_t r, int64_t g) {
            return static_cast<double>(scales.data<float>()[g * scales.dim(1) + r]);
          }};
}

Fp8Factor fp8_factor(const Fp8Blocks& blocks) {
  const Tensor scales = blocks.scales.to(kCpu);
  return {blocks.q_NK.dim(0), blocks.q_NK.dim(1), fp8_values(blocks.q_NK), [scales](int64_t r, int64_t g) {
            return static_cast<double>(scales.data<float>()[r / kScaleGroup * scales.dim(1) + g]);
          }};
}

std::vector<Fp8Sum> fp8_product_reference(const Fp8Factor& a, const Fp8Factor& b) {
  std::vector<Fp8Sum> out;
  for (int64_t i = 0; i < a.rows * b.rows; ++i) out.push_back(sum_reference(a, b, i / b.rows, i % b.rows));
  return out;
}

void expect_fp8_product(const Tensor& got, const std::vector<Fp8Sum>& want, const Values& before) {
  const double rounding = got.dtype() == DType::bf16 ? 0x1p-8 : 0x1p-24;
  const Values y = values(got.dtype() == DType::bf16 ? wide_on_host(got) : got);
  for (size_t i = 0; i < want.size(); ++i) {
    const double value = want[i].value + before[i];
    const double allowed = 1.01 * (want[i].allowed + rounding * (std::abs(value) + want[i].allowed));
    ASSERT_LE(std::abs(y[i] - value), allowed)
        << "row " << static_cast<int64_t>(i) / got.dim(1) << ", column "
        << static_cast<int64_t>(i) % got.dim(1) << ": " << y[i] << ", expected " << value;
  }
}

Tensor uneven_groups(Random& random, int64_t rows, int64_t width) {
  const Tensor t = random.tensor({rows, width}, DType::f32);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t first = 0; first < width; first += kScaleGroup) {
      const auto size = static_cast<float>(std::exp2(random.uniform(-3, 3)));
      for (int64_t i = first; i < std::min(width, first + kScaleGroup); ++i)
        t.data<float>()[r * width + i] *= size;
    }
  }
  return t;
}

}  // namespace phalanx::test
