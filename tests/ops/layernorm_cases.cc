#include "phalanx/ops/layernorm.h"

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

constexpr double kEps = 1e-5;

struct Reference {
  Values y, mean, inv_std, dx, dw, db;
  double dx_terms = 0;  // the size of what dx is a difference of
};

struct Row {
  double mean = 0;
  double inv_std = 0;
};

Row moments(const double* x, size_t width) {
  Row row;
  for (size_t i = 0; i < width; ++i) row.mean += x[i] / static_cast<double>(width);
  double variance = 0;
  for (size_t i = 0; i < width; ++i) variance += std::pow(x[i] - row.mean, 2) / static_cast<double>(width);
  row.inv_std = 1 / std::sqrt(variance + kEps);
  return row;
}

Reference reference(const Tensor& x_TD, const Tensor& w_D, const Tensor& b_D, const Tensor& dy_TD) {
  const Values x = values(x_TD);
  const Values w = values(w_D);
  const Values b = b_D.defined() ? values(b_D) : Values(w.size());
  const Values dy = values(dy_TD);
  const size_t width = w.size();
  Reference out = {Values(x.size()), {}, {}, Values(x.size()), Values(width), Values(width)};
  for (size_t first = 0; first < x.size(); first += width) {
    const Row row = moments(&x[first], width);
    out.mean.push_back(row.mean);
    out.inv_std.push_back(row.inv_std);
    double mean_gw = 0;
    double mean_gwn = 0;
    for (size_t i = 0; i < width; ++i) {
      const double normed = (x[first + i] - row.mean) * row.inv_std;
      const double gw = dy[first + i] * w[i];
      out.y[first + i] = normed * w[i] + b[i];
      mean_gw += gw / static_cast<double>(width);
      mean_gwn += gw * normed / static_cast<double>(width);
      out.dw[i] += dy[first + i] * normed;
      out.db[i] += dy[first + i];
      out.dx_terms = std::max(out.dx_terms, std::abs(row.inv_std * gw));
    }
    for (size_t i = 0; i < width; ++i) {
      const double normed = (x[first + i] - row.mean) * row.inv_std;
      out.dx[first + i] = row.inv_std * (dy[first + i] * w[i] - mean_gw - normed * mean_gwn);
    }
  }
  return out;
}

// `digits_lost`: by how much x's mean exceeds its deviation, which x's own rounding loses.
void expect_as_reference(Random& random, const Shape& shape, DType dtype, double deviation, double mean) {
  SCOPED_TRACE(format("{} {} deviation {} mean {}", shape, dtype_name(dtype), deviation, mean));
  const double digits_lost = 1 + std::abs(mean) / deviation;
  const Tensor x = random.tensor(shape, dtype, deviation, mean);
  const Tensor w = random.tensor({shape[1]}, dtype);
  const Tensor b = random.integer(0, 1) == 0 ? Tensor() : random.tensor({shape[1]}, dtype);
  const Tensor dy = random.tensor(shape, dtype);
  const Reference want = reference(x, w, b, dy);
  const Tensor before = random.tensor({shape[1]}, dtype);
  const Tensor also = random.integer(0, 1) == 0 ? Tensor() : here(random.tensor(shape, dtype));
  for_each_target_here([&](bool) {
    const Tensor shift = b.defined() ? here(b) : b;
    const LayerNormed got = layernorm(here(x), here(w), shift, kEps);
    expect_close(values(got.y_TD), want.y, within(16 * digits_lost, dtype, 4), "y");
    expect_close(values(got.mean_T), want.mean, within(8, dtype, std::abs(mean) + 4 * deviation), "mean");
    expect_close(values(got.inv_std_T), want.inv_std, within(16, dtype), "inv_std");
    const Tensor dw = copy_here(before);
    const Tensor db = b.defined() ? copy_here(before) : Tensor();
    const LayerNormed kept = {Tensor(), got.mean_T, got.inv_std_T};
    const Tensor dx = layernorm_backward(here(dy), here(x), here(w), kept, {dw, db, also});
    const double largest_of_also = also.defined() ? largest(values(also)) : 0;
    const Values dx_sum = also.defined() ? plus(values(also), want.dx) : want.dx;
    expect_close(values(dx), dx_sum, within(64 * digits_lost, dtype, want.dx_terms + largest_of_also), "dx");
    const Values dw_sum = plus(values(before), want.dw);
    expect_close(values(dw), dw_sum, within(64 * digits_lost, dtype, 1 + largest(dw_sum)), "dw");
    if (!db.defined()) return;
    const Values db_sum = plus(values(before), want.db);
    expect_close(values(db), db_sum, within(32, dtype, 1 + largest(db_sum)), "db");
  });
}

TEST_P(LayerNorm, EqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const Shape& shape : {Shape{0, 7}, Shape{3, 5}, Shape{7, 65}, Shape{2, 128}, Shape{37, 300}}) {
      expect_as_reference(random, shape, dtype, 1, 0);
    }
  }
  expect_as_reference(random, {2, 13001}, DType::f32, 1, 0);  // more than a GPU's registers hold
}

TEST_P(LayerNorm, HoldsAtAnyMagnitude) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const double deviation : {1e-3, 1e3, 1e25, 1e36}) {
    expect_as_reference(random, {3, 77}, DType::f32, deviation, 0);
  }
  expect_as_reference(random, {3, 77}, DType::f32, 1, 1000);
  expect_as_reference(random, {3, 77}, DType::f32, 1e34, -1e36);
}

// A row without variance: only eps is there to divide by.
TEST_P(LayerNorm, TakesAConstantRow) {
  const Tensor x = tensor({2, 3}, DType::f32, {5, 5, 5, 0, 0, 0});
  const Tensor w = tensor({3}, DType::f32, {1, 2, 3});
  const Tensor b = tensor({3}, DType::f32, {7, 8, 9});
  EXPECT_EQ(values(layernorm(here(x), here(w), here(b), kEps).y_TD), (Values{7, 8, 9, 7, 8, 9}));
}

TEST_P(LayerNorm, BackwardIsTheDerivative) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor x = random.tensor({3, 9}, DType::f64);
  const Tensor w = random.tensor({9}, DType::f64);
  const Tensor b = random.tensor({9}, DType::f64);
  const Tensor dy = random.tensor({3, 9}, DType::f64);
  const auto loss = [&] { return dot(dy, layernorm(here(x), here(w), here(b), kEps).y_TD); };
  const Tensor dw = here(Tensor::zeros({9}, DType::f64));
  const Tensor db = here(Tensor::zeros({9}, DType::f64));
  const LayerNormed out = layernorm(here(x), here(w), here(b), kEps);
  const Tensor dx = layernorm_backward(here(dy), here(x), here(w), out, {dw, db});
  expect_gradient(values(dx), numeric_gradient(x, loss), "x");
  expect_gradient(values(dw), numeric_gradient(w, loss), "w");
  expect_gradient(values(db), numeric_gradient(b, loss), "b");
}

TEST_P(LayerNorm, BitsDoNotDependOnThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor x = here(random.tensor({1000, 67}, DType::f32));
  const Tensor w = here(random.tensor({67}, DType::f32));
  const Tensor dy = here(random.tensor({1000, 67}, DType::f32));
  expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> {
    const LayerNormed out = layernorm(x, w, w, kEps);
    const Tensor dw = here(Tensor::zeros({67}, DType::f32));
    const Tensor db = here(Tensor::zeros({67}, DType::f32));
    const Tensor dx = layernorm_backward(dy, x, w, out, {dw, db});
    return {out.y_TD, out.mean_T, out.inv_std_T, dx, dw, db};
  });
}

}  // namespace
}  // namespace phalanx::test
