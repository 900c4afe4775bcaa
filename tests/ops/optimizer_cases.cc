#include "phalanx/ops/optimizer.h"

#include <bit>
#include <limits>

#include "phalanx/ops/cast.h"

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

struct State {
  Values w, m, v;
};

// The paper's algorithm 2, with bias-corrected moments written out.
void reference(State& s, const Values& g, double gradient_scale, const AdamWStep& c) {
  for (size_t i = 0; i < g.size(); ++i) {
    const double x = g[i] * gradient_scale;
    s.m[i] = c.beta1 * s.m[i] + (1 - c.beta1) * x;
    s.v[i] = c.beta2 * s.v[i] + (1 - c.beta2) * x * x;
    const double mean = s.m[i] / (1 - std::pow(c.beta1, c.step));
    const double variance = s.v[i] / (1 - std::pow(c.beta2, c.step));
    s.w[i] -= c.lr * (mean / (std::sqrt(variance) + c.eps) + c.weight_decay * s.w[i]);
  }
}

TEST_P(AdamW, EqualsTheReferenceOverSteps) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const int64_t n : {0, 1, 7, 65, 20003}) {
      SCOPED_TRACE(format("{} {}", n, dtype_name(dtype)));
      const Tensor w0 = random.tensor({n}, dtype);
      std::vector<Tensor> gradients;
      for (int i = 0; i < 3; ++i)
        gradients.push_back(random.tensor({n}, dtype, std::pow(10, random.uniform(-6, 3))));
      const double scale = random.uniform(0.1, 1);
      double most = 0;
      for (const Tensor& g : gradients) most = std::max(most, largest(values(g)));
      for_each_target_here([&](bool) {
        const Tensor w = copy_here(w0);
        const Tensor m = here(Tensor::zeros({n}, dtype));
        const Tensor v = here(Tensor::zeros({n}, dtype));
        const Tensor narrow = here(Tensor::empty({n}, DType::bf16));
        State want = {values(w0), values(m), values(v)};
        for (int64_t step = 1; step <= 3; ++step) {
          const AdamWStep c = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.999, .weight_decay = 0.1, .step = step};
          const Tensor& g = gradients[static_cast<size_t>(step - 1)];
          adamw_into({w, m, v, here(g), narrow}, scale, c);
          reference(want, values(g), scale, c);
        }
        expect_close(values(m), want.m, within(4, dtype, most), "m");
        expect_close(values(v), want.v, within(16, dtype), "v");
        expect_close(values(w), want.w, within(16, dtype, 1), "w");
        const Tensor rounded = here(Tensor::empty({n}, DType::bf16));
        narrow_into(rounded, w);
        EXPECT_EQ(values(narrow), values(rounded));
      });
    }
  }
}

// Moments of bf16: the update is that from the same ones in f32, which are rounded after it.
TEST_P(AdamW, RoundsNarrowMomentsAfterTheUpdate) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const int64_t n : {0, 1, 7, 65, 20003}) {
    SCOPED_TRACE(n);
    const Tensor w0 = random.tensor({n}, DType::f32);
    const Tensor g = here(random.tensor({n}, DType::f32, std::pow(10, random.uniform(-6, 3))));
    const double scale = random.uniform(0.1, 1);
    for_each_target_here([&](bool) {
      const Tensor w = copy_here(w0);
      const Tensor m = here(Tensor::zeros({n}, DType::bf16));
      const Tensor v = here(Tensor::zeros({n}, DType::bf16));
      const Tensor wide_w = copy_here(w0);
      const Tensor wide_m = here(Tensor::zeros({n}, DType::f32));
      const Tensor wide_v = here(Tensor::zeros({n}, DType::f32));
      const Tensor rounded = here(Tensor::empty({n}, DType::bf16));
      for (int64_t step = 1; step <= 3; ++step) {
        const AdamWStep c = {.lr = 0.01, .weight_decay = 0.1, .step = step};
        adamw_into({w, m, v, g}, scale, c);
        adamw_into({wide_w, wide_m, wide_v, g}, scale, c);
        EXPECT_EQ(values(w), values(wide_w));
        for (const auto& [narrow, wide] : {std::pair{m, wide_m}, std::pair{v, wide_v}}) {
          narrow_into(rounded, wide);
          EXPECT_EQ(values(narrow), values(rounded));
          widen_into(wide, rounded);
        }
      }
    });
  }
}

// A GPU and a CPU that fuses multiplications with additions round alike.
TEST_P(AdamW, HasTheBitsOfTheCpu) {
  Random random;
  SCOPED_TRACE(random.trace());
  constexpr int64_t n = 20003;
  for (const DType moments : {DType::f32, DType::bf16}) {
    const Tensor w = random.tensor({n}, DType::f32);
    const Tensor m = Tensor::zeros({n}, moments);
    const Tensor v = Tensor::zeros({n}, moments);
    const Tensor w_here = copy_here(w);
    const Tensor m_here = copy_here(m);
    const Tensor v_here = copy_here(v);
    for (int64_t step = 1; step <= 3; ++step) {
      const AdamWStep c = {.lr = 0.01, .weight_decay = 0.1, .step = step};
      const Tensor g = random.tensor({n}, DType::f32);
      adamw_into({w, m, v, g}, 0.7, c);
      adamw_into({w_here, m_here, v_here, here(g)}, 0.7, c);
    }
    EXPECT_EQ(values(w_here), values(w)) << dtype_name(moments);
    EXPECT_EQ(values(m_here), values(m)) << dtype_name(moments);
    EXPECT_EQ(values(v_here), values(v)) << dtype_name(moments);
  }
}

// Of the bits that a weight of bf16 draws.
uint32_t drawn(const StochasticRounding& r, int64_t i) {
  const int64_t index = r.first + i / r.columns * r.row_step + i % r.columns;
  return r.stream.bits(static_cast<uint64_t>(index), r.step) >> 16;
}

// The update of f32, cut off after as many random bits were added as are cut off.
void expect_rounded(const Tensor& got, const Tensor& wide, const StochasticRounding& r) {
  const Tensor got_here = got.to(kCpu);
  const Tensor wide_here = wide.to(kCpu);
  for (int64_t i = 0; i < got.numel(); ++i) {
    const auto bits = std::bit_cast<uint32_t>(wide_here.data<float>()[i]);
    const auto want = static_cast<uint16_t>((bits + drawn(r, i)) >> 16);
    ASSERT_EQ(got_here.data<bf16>()[i].bits, want) << i << " of " << wide_here.data<float>()[i];
  }
}

// Rows that counters of four fit and others, one row, and some that end in the middle of the last.
TEST_P(AdamW, RoundsStochasticallyToANeighbour) {
  Random random;
  SCOPED_TRACE(random.trace());
  struct Case {
    int64_t n, first, columns, row_step;
  };
  const auto large = int64_t{1} << 40;
  for (const auto& [n, first, columns, row_step] :
       {Case{0, 0, 1, 1}, Case{1, 3, 1, 1}, Case{65, 2, 13, 40}, Case{20004, large, 20004, 1},
        Case{20003, 7, 30000, 1}, Case{8192, 64, 32, 128}, Case{8190, 64, 32, 128},
        Case{9000, 5, 3000, 3001}}) {
    SCOPED_TRACE(format("{} from {}, rows of {} of {}", n, first, columns, row_step));
    const StochasticRounding r = {.stream = RandomStream(random.integer(0, 1 << 30), "w"),
                                  .step = static_cast<uint64_t>(random.integer(0, 1 << 30)),
                                  .first = first,
                                  .columns = columns,
                                  .row_step = row_step};
    const Tensor w0 = Tensor::empty({n}, DType::bf16);
    narrow_into(w0, random.tensor({n}, DType::f32));
    const Tensor g = here(random.tensor({n}, DType::f32));
    for (const DType moments : {DType::f32, DType::bf16}) {
      for_each_target_here([&](bool) {
        const auto zeros = [&] { return here(Tensor::zeros({n}, moments)); };
        const AdamWStep c = {.lr = 0.01, .weight_decay = 0.1, .step = 1};
        const Tensor w = copy_here(w0);
        const AdamWTensors x = {w, zeros(), zeros(), g};
        adamw_into(x, 0.7, c, r);
        const Tensor wide = here(Tensor::empty({n}, DType::f32));
        widen_into(wide, here(w0));
        const AdamWTensors y = {wide, zeros(), zeros(), g};
        adamw_into(y, 0.7, c);
        expect_rounded(w, wide, r);
        EXPECT_EQ(values(x.m), values(y.m));
        EXPECT_EQ(values(x.v), values(y.v));
      });
    }
  }
}

// Updates of a hundredth of a weight's last place: after a hundred, weights have moved as f32's, on average.
TEST_P(AdamW, StochasticRoundingKeepsTheMean) {
  Random random;
  SCOPED_TRACE(random.trace());
  constexpr int64_t n = 40000;
  constexpr int kSteps = 100;
  const double unit = 1.0 / 128;  // between neighbours from 1 on
  const Tensor w = Tensor::empty({n}, DType::bf16);
  narrow_into(w, tensor({n}, DType::f32, Values(n, 1.5)));
  const Tensor w_here = here(w);
  const Tensor g = here(tensor({n}, DType::f32, Values(n, -1)));
  const Tensor m = copy_here(g);
  const Tensor v = here(tensor({n}, DType::f32, Values(n, 1)));
  StochasticRounding r = {.stream = RandomStream(random.integer(0, 1 << 30), "w"), .columns = n};
  for (int i = 0; i < kSteps; ++i) {
    r.step = static_cast<uint64_t>(i);
    adamw_into({w_here, m, v, g}, 1, {.lr = unit / kSteps, .step = 1000000}, r);
  }
  double mean = 0;
  for (const double value : values(w_here)) mean += value / n;
  // A weight moves by a unit kSteps times with probability 1 / kSteps: a variance of one unit squared.
  EXPECT_NEAR(mean, 1.5 + unit, 6 * unit / std::sqrt(n));
}

TEST_P(AdamW, StochasticRoundingKeepsWhatIsNotFinite) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinite = std::numeric_limits<double>::infinity();
  const Tensor w = Tensor::empty({4}, DType::bf16);
  narrow_into(w, tensor({4}, DType::f32, {nan, -nan, infinite, -infinite}));
  const Tensor w_here = here(w);
  const Tensor zero = Tensor::zeros({4}, DType::f32);
  for (uint64_t step = 0; step < 100; ++step) {
    adamw_into({w_here, copy_here(zero), copy_here(zero), here(zero)}, 1, {.lr = 0.1, .step = 1},
               {.stream = RandomStream(step, "w"), .step = step, .columns = 4});
    const Values got = values(w_here);
    EXPECT_TRUE(std::isnan(got[0]) && std::isnan(got[1]));
    EXPECT_EQ(got[2], infinite);
    EXPECT_EQ(got[3], -infinite);
  }
}

// At a late step with a steady gradient the update is the rate times its sign: the bias correction neither
// stays nor fails.
TEST_P(AdamW, StepsByTheRate) {
  const Tensor w = here(tensor({2}, DType::f32, {1, 1}));
  const Tensor m = here(tensor({2}, DType::f32, {3, -3}));
  const Tensor v = here(tensor({2}, DType::f32, {9, 9}));
  const Tensor g = here(tensor({2}, DType::f32, {3, -3}));
  adamw_into({w, m, v, g}, 1, {.lr = 0.1, .beta1 = 0.9, .beta2 = 0.99, .step = 1000000});
  expect_close(values(w), {0.9, 1.1}, {1e-6, 0}, "w");
}

TEST_P(AdamW, LeavesZeroGradientsAlone) {
  const Tensor w = here(tensor({1}, DType::f32, {2}));
  const Tensor zero = Tensor::zeros({1}, DType::f32);
  adamw_into({w, copy_here(zero), copy_here(zero), here(zero)}, 1, {.lr = 0.1, .step = 1});
  EXPECT_EQ(values(w), Values{2});
}

TEST_P(Sgd, EqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    const Tensor w = random.tensor({1003}, dtype);
    const Tensor g = random.tensor({1003}, dtype);
    Values want = values(w);
    for (size_t i = 0; i < want.size(); ++i) want[i] -= 0.1 * 0.5 * values(g)[i];
    for_each_target_here([&](bool) {
      const Tensor got = copy_here(w);
      sgd_into(got, here(g), 0.5, 0.1);
      expect_close(values(got), want, within(2, dtype, 1), "w");
    });
  }
}

TEST_P(Optimizer, BitsDoNotDependOnThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor w = random.tensor({50021}, DType::f32);
  const Tensor g = random.tensor({50021}, DType::f32);
  expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> {
    const Tensor adam = copy_here(w);
    const Tensor m = copy_here(g);
    const Tensor v = here(Tensor::zeros(g.shape(), DType::f32));
    adamw_into({adam, m, v, here(g)}, 0.7, {.lr = 0.1, .weight_decay = 0.1});
    const Tensor sgd = copy_here(w);
    sgd_into(sgd, here(g), 0.7, 0.1);
    return {adam, m, v, sgd};
  });
}

}  // namespace
}  // namespace phalanx::test
