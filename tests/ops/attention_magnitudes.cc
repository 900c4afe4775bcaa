#include "tests/ops/attention_magnitudes.h"

namespace phalanx::test {
namespace {

double dot(const double* a, const double* b, int64_t n, bool magnitudes) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += magnitudes ? std::abs(a[i] * b[i]) : a[i] * b[i];
  return sum;
}

void add_magnitudes(double* to, double factor, const double* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += factor * std::abs(from[i]);
}

// Row i of the sequence that starts at row `start`.
void add_row(const AttentionProblem& x, const AttentionResults& r, int64_t start, int64_t i, int head,
             Magnitudes& out) {
  const int64_t d = x.config.head_dim;
  const int64_t e = x.config.values();
  const int kv_head = head / (x.config.heads / x.config.kv_heads);
  const int64_t query = (start + i) * x.query_stride() + head * d;
  const int64_t output = (start + i) * x.output_stride() + head * e;
  const double* const dy = x.dy.data() + output;
  const double* const y = r.y.data() + output;
  const double log_sum_exp = r.log_sum_exp[static_cast<size_t>((start + i) * x.config.heads + head)];
  const double delta = dot(dy, y, e, false);
  const double delta_terms = dot(dy, y, e, true);
  for (int64_t j = start; j <= start + i; ++j) {
    const int64_t key = j * x.key_stride() + kv_head * d;
    const int64_t value = j * x.value_stride() + kv_head * e;
    const double* const v = x.v.data() + value;
    const double p =
        std::exp(x.config.scale * dot(x.q.data() + query, x.k.data() + key, d, false) - log_sum_exp);
    // dy·v − delta may cancel: f32 leaves some 2⁻¹⁹ of the terms, which are 2⁻¹¹ of them in units of u.
    const double left = 0x1p-11 * (dot(dy, v, e, true) + delta_terms);
    const double ds = x.config.scale * p * (std::abs(dot(dy, v, e, false) - delta) + left);
    add_magnitudes(out.y.data() + output, p, v, e);
    add_magnitudes(out.dq.data() + query, ds, x.k.data() + key, d);
    add_magnitudes(out.dk.data() + key, ds, x.q.data() + query, d);
    add_magnitudes(out.dv.data() + value, p, dy, e);
  }
}

}  // namespace

Magnitudes magnitudes(const AttentionProblem& x, const AttentionResults& r) {
  Magnitudes out = {Values(x.dy.size()), Values(x.q.size()), Values(x.k.size()), Values(x.v.size())};
  for (size_t b = 0; b + 1 < x.offsets.size(); ++b) {
    for (int64_t i = 0; i < x.offsets[b + 1] - x.offsets[b]; ++i) {
      for (int head = 0; head < x.config.heads; ++head) add_row(x, r, x.offsets[b], i, head, out);
    }
  }
  return out;
}

void expect_within(const Values& got, const Values& want, const Values& magnitudes, double roundings,
                   const char* what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  ASSERT_EQ(got.size(), magnitudes.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    const double allowed = roundings * 0x1p-8 * magnitudes[i];
    if (std::abs(got[i] - want[i]) <= allowed) continue;
    ADD_FAILURE() << what << "[" << i << "] is " << got[i] << ", expected " << want[i] << " within "
                  << allowed;
    return;
  }
}

}  // namespace phalanx::test
