#include "phalanx/ops/elementwise.cuh"

#include "phalanx/ops/cuda_ops.h"

namespace phalanx::cuda {
namespace {

// The tanh form is x · logistic(2·√(2/π)·(x + 0.044715·x³)), without a difference that cancels.
constexpr double kSlope = 1.5957691216057308;  // 2·√(2/π)
constexpr double kCube = 0.044715;

// Within two units of the last place, at a third of the division's price.
__device__ float inverse(float x) { return __fdividef(1.F, x); }
__device__ double inverse(double x) { return 1 / x; }

template <class A>
__device__ A logistic_of(A x) {
  const A inner = fma(A(kSlope * kCube) * x, x, A(kSlope));
  return inverse(A(1) + exp(-(x * inner)));
}

__device__ float normal_cdf(float x) { return normcdff(x); }
__device__ double normal_cdf(double x) { return ::normcdf(x); }

struct Erf {
  template <class A>
  __device__ A operator()(A x) const {
    return x * normal_cdf(x);
  }
};

struct Tanh {
  template <class A>
  __device__ A operator()(A x) const {
    return x * logistic_of(x);
  }
};

// Φ + x·φ
struct ErfSlope {
  template <class A>
  __device__ A operator()(A dy, A x) const {
    const A density = exp(A(-0.5) * x * x) * A(0.39894228040143268);
    return dy * fma(x, density, normal_cdf(x));
  }
};

// With s the logistic function's value: s + x·s·(1 − s)·slope·(1 + 3·cube·x²).
struct TanhSlope {
  template <class A>
  __device__ A operator()(A dy, A x) const {
    const A s = logistic_of(x);
    // Far out s·(1 − s) is 0, whatever `inner` is as long as it is finite. (A NaN comes by way of s.)
    const A near = fmax(A(-60), fmin(x, A(60)));
    const A inner = near * fma(A(3 * kSlope * kCube) * near, near, A(kSlope));
    return dy * fma(s * (A(1) - s), inner, s);
  }
};

}  // namespace

void gelu_into(const Tensor& y, const Tensor& x, Gelu kind) {
  if (kind == Gelu::erf) {
    elementwise("gelu", Erf(), y, x);
  } else {
    elementwise("gelu", Tanh(), y, x);
  }
}

void gelu_backward_into(const Tensor& dx, const Tensor& dy, const Tensor& x, Gelu kind) {
  if (kind == Gelu::erf) {
    elementwise("gelu_backward", ErfSlope(), dx, dy, x);
  } else {
    elementwise("gelu_backward", TanhSlope(), dx, dy, x);
  }
}

}  // namespace phalanx::cuda
