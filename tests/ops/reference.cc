#include "tests/ops/reference.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "hwy/targets.h"

namespace phalanx::test {

Values values(const Tensor& t) {
  const Tensor host = t.to(kCpu);
  if (t.dtype() == DType::bf16) {
    Values out;
    for (const bf16 v : host.span<const bf16>()) out.push_back(v.to_float());
    return out;
  }
  return visit_float(t.dtype(), [&](auto zero) {
    const auto span = host.span<const decltype(zero)>();
    return Values(span.begin(), span.end());
  });
}

Values values(const Rows& rows) {
  const Rows host = {rows.data.to(kCpu), rows.live.to(kCpu)};
  return values(host.data.slice(0, host.count()));
}

Tensor tensor(const Shape& shape, DType dtype, const Values& values) {
  const Tensor t = Tensor::empty(shape, dtype);
  EXPECT_EQ(static_cast<size_t>(t.numel()), values.size());
  visit_float(dtype, [&](auto zero) {
    using T = decltype(zero);
    std::ranges::transform(values, t.data<T>(), [](double v) { return static_cast<T>(v); });
  });
  return t;
}

Tensor indices(const std::vector<int32_t>& values) {
  return Tensor::of(Shape{static_cast<int64_t>(values.size())}, std::span<const int32_t>(values));
}

Tensor indices64(const Shape& shape, const std::vector<int64_t>& values) {
  return Tensor::of(shape, std::span<const int64_t>(values));
}

Tensor copy(const Tensor& t) {
  const Tensor out = Tensor::empty(t.shape(), t.dtype(), t.device());
  copy_into(out, t);
  return out;
}

Values plus(Values a, const Values& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b.at(i);
  return a;
}

Tensor Random::tensor(const Shape& shape, DType dtype, double deviation, double mean) {
  const Tensor t = Tensor::empty(shape, dtype);
  visit_float(dtype, [&](auto zero) {
    using T = decltype(zero);
    for (T& v : t.span<T>()) v = static_cast<T>(mean + deviation * normal());
  });
  return t;
}

Tolerance within(double ulps, DType dtype, double floor) {
  double unit = std::numeric_limits<float>::epsilon();
  if (dtype == DType::f64) unit = std::numeric_limits<double>::epsilon();
  if (dtype == DType::bf16) unit = 1.0 / 128;
  return {ulps * unit, floor};
}

void expect_close(const Values& got, const Values& want, Tolerance tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    const double allowed = tolerance.relative * std::max(std::abs(want[i]), tolerance.floor);
    if (got[i] == want[i] || std::abs(got[i] - want[i]) <= allowed) continue;
    ADD_FAILURE() << what << "[" << i << "] is " << got[i] << ", expected " << want[i] << " within "
                  << allowed;
    return;
  }
}

double largest(const Values& values) {
  double most = 0;
  for (const double v : values) most = std::max(most, std::abs(v));
  return most;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = a.to(kCpu);
  const Tensor y = b.to(kCpu);
  return a.dtype() == b.dtype() && a.shape() == b.shape() && std::memcmp(x.raw(), y.raw(), x.bytes()) == 0;
}

Values numeric_gradient(Tensor x, const std::function<double()>& f, double step) {
  Values gradient;
  for (double& v : x.span<double>()) {
    const double at = v;
    v = at + step;
    const double above = f();
    v = at - step;
    const double below = f();
    v = at;
    gradient.push_back((above - below) / (2 * step));
  }
  return gradient;
}

void expect_gradient(const Values& analytic, const Values& numeric, const std::string& what) {
  expect_close(analytic, numeric, {1e-6, std::max(1.0, largest(numeric))}, "gradient of " + what);
}

double dot(const Tensor& a, const Tensor& b) {
  const Values va = values(a);
  const Values vb = values(b);
  double sum = 0;
  for (size_t i = 0; i < va.size(); ++i) sum += va[i] * vb.at(i);
  return sum;
}

void for_each_target(const std::function<void(bool fused)>& f) {
  // What phalanx/ops/simd_targets.h leaves of Highway's list; the last, plain C++, is what HWY_STATIC_TARGET
  // is.
  for (const int64_t target : {HWY_AVX3, HWY_AVX2, HWY_STATIC_TARGET}) {
    const bool plain = target == HWY_STATIC_TARGET;
    if (!plain && (hwy::SupportedTargets() & target) == 0) continue;
    SCOPED_TRACE(hwy::TargetName(target));
    struct Only {
      explicit Only(int64_t targets) { set(targets); }
      ~Only() { set(0); }
      static void set(int64_t targets) {
        hwy::SetSupportedTargetsForTest(targets);
        hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      }
    } only(target);
    f(!plain);
  }
}

void expect_same_bits_for_any_threads(const std::function<std::vector<Tensor>()>& f) {
  const std::vector<Tensor> want = f();
  for (const int threads : {2, 3}) {
    const ThreadScope scope(threads);
    const std::vector<Tensor> got = f();
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_TRUE(same_bits(got[i], want[i])) << "result " << i << " with " << threads << " threads";
    }
  }
}

}  // namespace phalanx::test
