// Factors in FP8 whose products are exact in any order: whole numbers, and scales that are powers of two.
#pragma once

#include <cmath>

#include "phalanx/ops/fp8.h"
#include "tests/ops/bf16_on_gpu.h"

namespace phalanx::test {

class WholeFp8OnGpu : public Bf16OnGpu {
 protected:
  // −2 … 2.
  Tensor whole_numbers(const Shape& shape) {
    const Tensor t = Tensor::empty(shape, DType::f8e4m3);
    for (f8e4m3& q : t.span<f8e4m3>()) q = f8e4m3::from(static_cast<float>(random_.integer(-2, 2)));
    return t;
  }
  // 1/2 … 4.
  Tensor powers(const Shape& shape) {
    const Tensor t = Tensor::empty(shape, DType::f32);
    for (float& scale : t.span<float>()) scale = std::ldexp(1.0f, static_cast<int>(random_.integer(-1, 2)));
    return t;
  }
  static Fp8Lines on_gpu(const Fp8Lines& x) { return {x.q_RK.to(kGpu), x.scales_SR.to(kGpu), x.format}; }
  static Fp8Blocks on_gpu(const Fp8Blocks& x) { return {x.q_NK.to(kGpu), x.scales.to(kGpu)}; }
};

}  // namespace phalanx::test
