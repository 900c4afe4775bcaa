#include "tests/ops/attention_magnitudes.h"

namespace phalanx::test {
namespace {

double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

double dot_of_magnitudes(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::abs(a[i] * b[i]);
  return sum;
}

void add_magnitudes(double* to, double factor, const double* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += factor * std::abs(from[i]);
}

struct Sums {
  const AttentionProblem& x;
  const AttentionResults& r;
  const Roundings& roundings;
  Magnitudes out;

  // Row i of the sequence that starts at row `start`.
  void add_row(int64_t start, int64_t i, int head) {
    const int64_t d = x.config.head_dim;
    const int64_t e = x.config.values();
    const int kv_head = head / (x.config.heads / x.config.kv_heads);
    const int64_t query = (start + i) * x.query_stride() + head * d;
    const int64_t output = (start + i) * x.output_stride() + head * e;
    const double* const q = x.q.data() + query;
    const double* const dy = x.dy.data() + output;
    const double* const y = r.y.data() + output;
    const double log_sum_exp = r.log_sum_exp[static_cast<size_t>((start + i) * x.config.heads + head)];
    const double delta = dot(dy, y, e);
    const double delta_terms = dot_of_magnitudes(dy, y, e);
    for (int64_t j = start; j <= start + i; ++j) {
      const int64_t key = j * x.key_stride() + kv_head * d;
      const int64_t value = j * x.value_stride() + kv_head * e;
      const double* const k = x.k.data() + key;
      const double* const v = x.v.data() + value;
      const double p =
          std::exp(x.config.scale * dot(q, k, d) - log_sum_exp) *
          (1 + roundings.scores * (x.config.scale * dot_of_magnitudes(q, k, d) + std::abs(log_sum_exp)));
      const double left = roundings.differences * (dot_of_magnitudes(dy, v, e) + delta_terms);
      const double ds = x.config.scale * p * (std::abs(dot(dy, v, e) - delta) + left);
      add_magnitudes(out.y.data() + output, p, v, e);
      add_magnitudes(out.dq.data() + query, ds, k, d);
      add_magnitudes(out.dk.data() + key, ds, q, d);
      add_magnitudes(out.dv.data() + value, p, dy, e);
    }
  }
};

}  // namespace

Magnitudes magnitudes(const AttentionProblem& x, const AttentionResults& r, const Roundings& roundings) {
  Sums sums = {
      x, r, roundings, {Values(x.dy.size()), Values(x.q.size()), Values(x.k.size()), Values(x.v.size())}};
  for (size_t b = 0; b + 1 < x.offsets.size(); ++b) {
    for (int64_t i = 0; i < x.offsets[b + 1] - x.offsets[b]; ++i) {
      for (int head = 0; head < x.config.heads; ++head) sums.add_row(x.offsets[b], i, head);
    }
  }
  return sums.out;
}

void expect_within(const Values& got, const Values& want, const Values& magnitudes, double error,
                   const char* what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  ASSERT_EQ(got.size(), magnitudes.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    const double allowed = error * magnitudes[i];
    if (std::abs(got[i] - want[i]) <= allowed) continue;
    ADD_FAILURE() << what << "[" << i << "] is " << got[i] << ", expected " << want[i] << " within "
                  << allowed;
    return;
  }
}

void expect_attention(const AttentionProblem& x, const AttentionResults& got, const AttentionResults& want,
                      DType dtype) {
  const double ulps = dtype == DType::f64 ? 400 : 40;
  expect_close(got.log_sum_exp, want.log_sum_exp, within(ulps, dtype, largest(want.log_sum_exp)),
               "log-sum-exp");
  const Magnitudes sums = magnitudes(x, want, kEverywhere);
  const double error = within(10, dtype, 0).relative;
  expect_within(got.y, want.y, sums.y, error, "y");
  expect_within(got.dq, want.dq, sums.dq, error, "dq");
  expect_within(got.dk, want.dk, sums.dk, error, "dk");
  expect_within(got.dv, want.dv, sums.dv, error, "dv");
}

}  // namespace phalanx::test
