// What bounds attention's rounding errors. With u = 2⁻⁸, half a unit of bf16's last place, rounding the
// factors of a sum (probabilities, gradients of scores) changes it by at most u times the sum of its terms'
// magnitudes, rounding the result by as much at most, and adding up the heads of a group, each rounded, by as
// much again.
#pragma once

#include "tests/ops/attention_reference.h"

namespace phalanx::test {

/// For each element of y, dq, dk and dv the sum of the magnitudes of what is added up there.
struct Magnitudes {
  Values y, dq, dk, dv;
};
/// `r` are results for x, of which y and log_sum_exp are used.
Magnitudes magnitudes(const AttentionProblem& x, const AttentionResults& r);

/// |got − want| ≤ roundings · u · magnitudes.
void expect_within(const Values& got, const Values& want, const Values& magnitudes, double roundings,
                   const char* what);

}  // namespace phalanx::test
