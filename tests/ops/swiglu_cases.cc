#include "phalanx/ops/swiglu.h"

#include <limits>

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

// gate_up [rows, 2F] → silu(gate)·up, and the gradient of gate_up from dy.
struct Reference {
  Values y;
  Values dx;
};
Reference reference(const Values& gate_up, const Values& dy, size_t f) {
  Reference out = {{}, Values(gate_up.size())};
  for (size_t first = 0; first < gate_up.size(); first += 2 * f) {
    for (size_t i = first; i < first + f; ++i) {
      const double s = logistic(gate_up[i]);
      const double g = dy[out.y.size()];
      out.dx[i] = g * gate_up[i + f] * (s + gate_up[i] * s * (1 - s));
      out.dx[i + f] = g * gate_up[i] * s;
      out.y.push_back(gate_up[i] * s * gate_up[i + f]);
    }
  }
  return out;
}

Rows first_rows(const Tensor& data, int64_t live) { return {data, indices64({1}, {live})}; }

TEST_P(Swiglu, EqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const auto& [rows, f] : {std::pair(0, 3), {1, 1}, {3, 5}, {7, 65}, {2, 128}, {67, 200}}) {
      SCOPED_TRACE(format("{} rows of {} {}", rows, f, dtype_name(dtype)));
      const Tensor x = random.tensor({rows, 2 * f}, dtype, 5);
      const Tensor dy = random.tensor({rows, f}, dtype);
      const Reference want = reference(values(x), values(dy), static_cast<size_t>(f));
      for_each_target_here([&](bool) {
        expect_close(values(swiglu(all_rows(here(x)))), want.y, within(6, dtype), "y");
        expect_close(values(swiglu_backward(all_rows(here(dy)), all_rows(here(x)))), want.dx,
                     within(16, dtype, 0.5), "dx");
      });
    }
  }
}

TEST_P(Swiglu, TakesHugeGates) {
  const double huge = std::numeric_limits<float>::max();
  const Rows x = all_rows(tensor({1, 8}, DType::f32, {huge, -huge, 100, -100, 1, 1, 1, 1}));
  const Rows dy = all_rows(tensor({1, 4}, DType::f32, {1, 1, 1, 1}));
  for_each_target_here([&](bool) {
    EXPECT_EQ(values(swiglu(here(x))), (Values{huge, 0, 100, 0}));
    EXPECT_EQ(values(swiglu_backward(here(dy), here(x))), (Values{1, 0, 1, 0, huge, 0, 100, 0}));
    const Rows nan = all_rows(tensor({1, 2}, DType::f32, {std::nan(""), 1}));
    EXPECT_TRUE(std::isnan(values(swiglu(here(nan)))[0]));
  });
}

TEST_P(Swiglu, TouchesLiveRowsOnly) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor x = random.tensor({5, 6}, DType::f32);
  const Tensor dy = random.tensor({5, 3}, DType::f32);
  const Rows y = swiglu(here(first_rows(x, 2)));
  EXPECT_EQ(y.capacity(), 5);
  EXPECT_EQ(values(y).size(), 6u);
  EXPECT_EQ(values(y), values(swiglu(all_rows(here(x.slice(0, 2))))));
  const Rows dx = swiglu_backward(here(first_rows(dy, 2)), here(first_rows(x, 2)));
  EXPECT_EQ(values(dx),
            values(swiglu_backward(all_rows(here(dy.slice(0, 2))), all_rows(here(x.slice(0, 2))))));
}

TEST_P(Swiglu, BackwardIsTheDerivative) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor x = random.tensor({3, 10}, DType::f64, 2);
  const Tensor dy = random.tensor({3, 5}, DType::f64);
  const auto loss = [&] { return dot(dy, swiglu(all_rows(here(x))).data); };
  expect_gradient(values(swiglu_backward(all_rows(here(dy)), all_rows(here(x)))), numeric_gradient(x, loss),
                  "x");
}

TEST_P(Swiglu, BitsDoNotDependOnThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor x = random.tensor({500, 134}, DType::f32);
  const Tensor dy = random.tensor({500, 67}, DType::f32);
  expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> {
    return {swiglu(all_rows(here(x))).data, swiglu_backward(all_rows(here(dy)), all_rows(here(x))).data};
  });
}

// Rows of slots that name an expert, in expert order, with random weights; some slots name none, and an
// expert may have none.
struct WeightedRows {
  ExpertOrder order;
  Rows gate_up, dy;  // of random live rows
  Tensor weights;
};

WeightedRows weighted_rows(Random& random, const Shape& slots, int64_t f, DType dtype) {
  constexpr int kExperts = 7;
  std::vector<int64_t> idx(static_cast<size_t>(slots.numel()));
  for (int64_t& e : idx) e = random.integer(0, 3) == 0 ? -1 : random.integer(0, kExperts - 1);
  const Rows topk = first_rows(indices64(slots, idx), random.integer(0, slots[0]));
  const ExpertOrder order = order_by_expert(topk, kExperts);
  return {order,
          {random.tensor({slots.numel(), 2 * f}, dtype, 3), order.live},
          {random.tensor({slots.numel(), f}, dtype), order.live},
          random.tensor(slots, dtype)};
}

WeightedSwigluGradients gradients(const WeightedRows& in) {
  const ExpertOrder order = {here(in.order.offsets), here(in.order.slots), here(in.order.places),
                             here(in.order.live)};
  return weighted_swiglu_backward(here(in.dy), here(in.gate_up), order, here(in.weights));
}

void expect_weighted_reference(const WeightedRows& in, int64_t f, DType dtype) {
  const std::vector<int64_t> slots = list(in.order.slots);
  const Values weights = values(in.weights);
  const Values dy = values(in.dy);
  const auto width = static_cast<size_t>(f);
  auto [y, dx] = reference(values(in.gate_up), dy, width);
  const auto slot_of = [&](size_t row) { return static_cast<size_t>(slots[row]); };
  for (size_t i = 0; i < dx.size(); ++i) dx[i] *= weights[slot_of(i / (2 * width))];
  Values dweights(weights.size());
  double largest_term = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    const double term = dy[i] * y[i];
    dweights[slot_of(i / width)] += term;
    largest_term = std::max(largest_term, std::abs(term));
    y[i] *= weights[slot_of(i / width)];
  }
  for_each_target_here([&](bool) {
    const WeightedSwigluGradients got = gradients(in);
    expect_close(values(got.gate_up), dx, within(16, dtype, 1), "dx");
    expect_close(values(got.weighted_CF), y, within(8, dtype), "weighted");
    expect_close(values(got.weights_RK), dweights,
                 within(16, dtype, 1 + largest_term * std::sqrt(static_cast<double>(f))), "dweights");
  });
}

TEST_P(Swiglu, WeightedBackwardEqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const auto& [rows, k, f] :
         {std::array<int64_t, 3>{0, 2, 3}, {1, 1, 1}, {5, 3, 33}, {9, 2, 128}, {40, 4, 1000}, {3, 2, 4100}}) {
      SCOPED_TRACE(format("{} rows of {} slots, {} wide, {}", rows, k, f, dtype_name(dtype)));
      expect_weighted_reference(weighted_rows(random, {rows, k}, f, dtype), f, dtype);
    }
  }
}

TEST_P(Swiglu, WeightedBackwardIsTheDerivative) {
  Random random;
  SCOPED_TRACE(random.trace());
  const WeightedRows in = weighted_rows(random, {4, 3}, 5, DType::f64);
  const int64_t held = list(in.order.live)[0];
  const Tensor x = in.gate_up.data.slice(0, held);
  const Tensor dy = in.dy.data.slice(0, held);
  const std::vector<int64_t> slots = list(in.order.slots);
  const auto loss = [&] {
    const Values y = values(swiglu(all_rows(here(x))));
    const Values g = values(dy);
    const Values w = values(in.weights);
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += w[static_cast<size_t>(slots[i / 5])] * g[i] * y[i];
    return sum;
  };
  const WeightedSwigluGradients got = gradients(in);
  expect_gradient(values(got.gate_up), numeric_gradient(x, loss), "gate_up");
  expect_gradient(values(got.weights_RK), numeric_gradient(in.weights, loss), "weights");
}

TEST_P(Swiglu, WeightedBackwardHasTheBitsOfAnyThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const WeightedRows in = weighted_rows(random, {300, 3}, 67, DType::f32);
  const int64_t held = list(in.order.live)[0];
  expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> {
    const WeightedSwigluGradients d = gradients(in);
    return {d.gate_up.data.slice(0, held), d.weighted_CF.data.slice(0, held), d.weights_RK};
  });
}

}  // namespace
}  // namespace phalanx::test
