// The definitions of FP8 factors, for their tests: on the host, one element after another.
#pragma once

#include "phalanx/ops/fp8.h"
#include "tests/ops/reference.h"

namespace phalanx::test {

/// What fp8_rows or fp8_columns should give.
struct LinesReference {
  Tensor q;
  Tensor scales;
};
/// A group's largest magnitude counts as `least` at least.
LinesReference rows_reference(const Tensor& x, ScaleFormat format, float least = 0x1p-100f);
LinesReference columns_reference(const Tensor& x, ScaleFormat format);

/// What fp8_blocks should give.
struct BlocksReference {
  Tensor q;
  Tensor scales;
};
BlocksReference blocks_reference(const Tensor& w, ScaleFormat format);

/// Of f32 or f8e4m3.
Tensor transpose_reference(const Tensor& x);

/// Normal elements whose rows and columns differ in size by powers of two from 2^-24 to 2^24, some of them
/// 0.
Tensor scattered(Random& random, const Shape& shape, DType dtype);

/// The first `length` terms of each line, q · scale in f32, on the host.
Tensor line_values(const Fp8Lines& lines, int64_t length);

/// The elements of a f8e4m3 tensor, wherever it is.
Values fp8_values(const Tensor& q);

/// On the host: bf16 as f32, and f32 rounded to bf16 or as it is.
Tensor wide_on_host(const Tensor& x);
Tensor rounded_on_host(const Tensor& x, DType dtype);

/// Where `got`, wherever it is, first differs from `want` in a bit, and how; empty if it does not.
std::string first_difference(const Tensor& got, const Tensor& want);

}  // namespace phalanx::test
