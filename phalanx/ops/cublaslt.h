// Products by cuBLASLt: what matmul_cuda.cc asks it for.
#pragma once

#include <cstdint>

#include "phalanx/tensor/tensor.h"

namespace phalanx::cuda {

/// What is done to a product before it is written.
enum class Epilogue : uint8_t {
  none,
  bias,           // of n, added to each row
  gelu,           // written as it is beside (aux), and its GELU (tanh) as c
  gelu_bias,      // the same with a bias before
  gelu_backward,  // times GELU's slope (tanh) at aux
};

/// c [m, n] = op(a)·op(b) + beta·c, all row-major; transposed ones are stored [k, m] and [n, k].
struct Product {
  DType dtype;   // of a and b
  DType result;  // of c
  bool transpose_a;
  bool transpose_b;
  bool accumulate;  // what stands in c, or in `also`
  Epilogue epilogue = Epilogue::none;
  int64_t m;
  int64_t n;
  int64_t k;

  auto operator<=>(const Product&) const = default;
};

/// [m, k] and [k, n] or their transposes, [m, n]; bias [n]; aux and also [m, n]; the last three where there
// are any.
struct Operands {
  const Tensor& a;
  const Tensor& b;
  const Tensor& c;
  Tensor bias = {};
  Tensor aux = {};
  Tensor also = {};
};

/// Computes c.
void multiply(const Product& p, const Operands& operands);

}  // namespace phalanx::cuda
