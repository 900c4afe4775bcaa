// The definition of FP8 products, for their tests: in f64, with the error that their arithmetic may make.
#pragma once

#include <functional>

#include "phalanx/ops/fp8.h"
#include "tests/ops/fp8_reference.h"

namespace phalanx::test {

/// A factor on the host: `rows` rows of `terms` terms, and the scale of row r and group g.
struct Fp8Factor {
  int64_t rows;
  int64_t terms;
  Values q;
  std::function<double(int64_t r, int64_t g)> scale;
};
Fp8Factor fp8_factor(const Fp8Lines& lines);
Fp8Factor fp8_factor(const Fp8Blocks& blocks);

/// An exact result, and how far one in f32 may lie from it, where the running test is, before it is rounded.
struct Fp8Sum {
  double value = 0;
  double allowed = 0;
};
std::vector<Fp8Sum> fp8_product_reference(const Fp8Factor& a, const Fp8Factor& b);

/// got, of f32 or bf16, is `want` + `before`, within what is allowed.
void expect_fp8_product(const Tensor& got, const std::vector<Fp8Sum>& want, const Values& before);

/// Normal rows in f32 whose groups of 128 differ in size.
Tensor uneven_groups(Random& random, int64_t rows, int64_t width);

}  // namespace phalanx::test
