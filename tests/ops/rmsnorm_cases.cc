#include "phalanx/ops/rmsnorm.h"

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

constexpr double kEps = 1e-5;

struct Reference {
  Values y;
  Values inv_rms;
  Values dx;
  Values dw;
  double dx_terms = 0;  // the size of what dx is a difference of
};

Reference reference(const Tensor& x_TD, const Tensor& w_D, const Tensor& dy_TD) {
  const Values x = values(x_TD);
  const Values w = values(w_D);
  const Values dy = values(dy_TD);
  const size_t width = w.size();
  Reference out = {Values(x.size()), {}, Values(x.size()), Values(width), 0};
  for (size_t r = 0; r < static_cast<size_t>(x_TD.rows()); ++r) {
    double squares = 0;
    for (size_t i = 0; i < width; ++i) squares += x[r * width + i] * x[r * width + i];
    const double inv = 1 / std::sqrt(squares / static_cast<double>(width) + kEps);
    out.inv_rms.push_back(inv);
    double mean = 0;
    for (size_t i = 0; i < width; ++i) {
      const double normed = x[r * width + i] * inv;
      out.y[r * width + i] = normed * w[i];
      mean += dy[r * width + i] * w[i] * normed / static_cast<double>(width);
      out.dw[i] += dy[r * width + i] * normed;
    }
    for (size_t i = 0; i < width; ++i) {
      out.dx[r * width + i] = inv * (dy[r * width + i] * w[i] - x[r * width + i] * inv * mean);
      out.dx_terms = std::max(out.dx_terms, std::abs(inv * dy[r * width + i] * w[i]));
    }
  }
  return out;
}

void expect_as_reference(Random& random, const Shape& shape, DType dtype, double deviation) {
  SCOPED_TRACE(format("{} {} deviation {}", shape, dtype_name(dtype), deviation));
  const Tensor x = random.tensor(shape, dtype, deviation);
  const Tensor w = random.tensor({shape[1]}, dtype);
  const Tensor dy = random.tensor(shape, dtype);
  const Reference want = reference(x, w, dy);
  const Tensor before = random.tensor({shape[1]}, dtype);
  const Tensor also = random.integer(0, 1) == 0 ? Tensor() : here(random.tensor(shape, dtype));
  for_each_target_here([&](bool) {
    const RmsNormed got = rmsnorm(here(x), here(w), kEps);
    expect_close(values(got.y_TD), want.y, within(8, dtype), "y");
    expect_close(values(got.inv_rms_T), want.inv_rms, within(8, dtype), "inv_rms");
    const Tensor dw = copy_here(before);
    const Tensor dx = rmsnorm_backward(here(dy), here(x), here(w), got.inv_rms_T, dw, also);
    const double largest_of_also = also.defined() ? largest(values(also)) : 0;
    const Values dx_sum = also.defined() ? plus(values(also), want.dx) : want.dx;
    expect_close(values(dx), dx_sum, within(32, dtype, want.dx_terms + largest_of_also), "dx");
    const Values sum = plus(values(before), want.dw);
    expect_close(values(dw), sum, within(32, dtype, 1 + largest(sum)), "dw");
  });
}

TEST_P(RmsNorm, EqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const Shape& shape : {Shape{0, 7}, Shape{1, 1}, Shape{3, 5}, Shape{7, 65}, Shape{2, 128},
                               Shape{37, 300}, Shape{2100, 40}}) {
      expect_as_reference(random, shape, dtype, 1);
    }
  }
  // Against a row this wide, the reference's own rounding counts in f64.
  expect_as_reference(random, {2, 13001}, DType::f32, 1);
}

// Where squares would leave the range of f32 on either side.
TEST_P(RmsNorm, HoldsAtAnyMagnitude) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const double deviation : {1e-30, 1e-3, 1e3, 1e25, 1e36}) {
    expect_as_reference(random, {3, 77}, DType::f32, deviation);
  }
}

TEST_P(RmsNorm, BackwardIsTheDerivative) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor x = random.tensor({3, 9}, DType::f64);
  const Tensor w = random.tensor({9}, DType::f64);
  const Tensor dy = random.tensor({3, 9}, DType::f64);
  const auto forward = [&] { return rmsnorm(here(x), here(w), kEps); };
  const auto loss = [&] { return dot(dy, forward().y_TD); };
  const Tensor dw = copy_here(Tensor::zeros({9}, DType::f64));
  const Tensor dx = rmsnorm_backward(here(dy), here(x), here(w), forward().inv_rms_T, dw);
  expect_gradient(values(dx), numeric_gradient(x, loss), "x");
  expect_gradient(values(dw), numeric_gradient(w, loss), "w");
}

TEST_P(RmsNorm, BitsDoNotDependOnThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor x = random.tensor({1000, 67}, DType::f32);
  const Tensor w = random.tensor({67}, DType::f32);
  const Tensor dy = random.tensor({1000, 67}, DType::f32);
  expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> {
    const RmsNormed out = rmsnorm(here(x), here(w), kEps);
    const Tensor dw = copy_here(Tensor::zeros({67}, DType::f32));
    const Tensor dx = rmsnorm_backward(here(dy), here(x), here(w), out.inv_rms_T, dw);
    return {out.y_TD, out.inv_rms_T, dx, dw};
  });
}

}  // namespace
}  // namespace phalanx::test
