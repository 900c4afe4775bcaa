// The definition of matrix products, for their tests.
#pragma once

#include "tests/ops/reference.h"

namespace phalanx::test {

/// x·w, x·wᵀ and dyᵀ·x, as in ops/matmul.h.
enum class Form { nn, nt, tn };

/// In f64, c [m, n] = a · b.
Values product_reference(Form form, const Tensor& a, const Tensor& b);

/// Sums of k products of normal numbers, rounded in any order.
inline Tolerance sums_of(int64_t k, DType dtype) { return within(4, dtype, 4 + static_cast<double>(k)); }

}  // namespace phalanx::test
