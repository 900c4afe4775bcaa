// What bounds attention's rounding errors: for each result the sum of the magnitudes of its terms, since the
// terms themselves may cancel. Each term's factors are rounded (probabilities, gradients of scores), and the
// result.
#pragma once

#include "tests/ops/attention_reference.h"

namespace phalanx::test {

/// For each element of y, dq, dk and dv the sum of the magnitudes of what is added up there.
struct Magnitudes {
  Values y, dq, dk, dv;
};

/// What comes to a term's magnitude beside its own, in units of the error by which all are multiplied.
struct Roundings {
  double scores;  ///< × the terms of a score and its row's log-sum-exp: exp makes factors of their errors
  double differences;  ///< × the terms of dy·v − dy·y, which may cancel
};
/// Results of f32 or f64, computed in it all through.
inline constexpr Roundings kEverywhere = {1, 1};
/// Results of bf16, in units of u = 2⁻⁸, half a unit of its last place: sums are of f32, which leaves some
/// 2⁻¹⁹ of what cancels.
inline constexpr Roundings kOfFactors = {0, 0x1p-11};

/// `r` are results for x, of which y and log_sum_exp are used.
Magnitudes magnitudes(const AttentionProblem& x, const AttentionResults& r, const Roundings& roundings);

/// |got − want| ≤ error · magnitudes.
void expect_within(const Values& got, const Values& want, const Values& magnitudes, double error,
                   const char* what);

/// Results of f32 or f64 against those of the definition.
void expect_attention(const AttentionProblem& x, const AttentionResults& got, const AttentionResults& want,
                      DType dtype);

}  // namespace phalanx::test
