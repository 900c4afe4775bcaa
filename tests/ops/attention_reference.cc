#include "tests/ops/attention_reference.h"

#include <algorithm>
#include <numeric>

namespace phalanx::test {
namespace {

double dot(const double* a, const double* b, int64_t n) { return std::inner_product(a, a + n, b, 0.0); }

// Row i of a sequence that starts at row `start`, one head: y = softmax(scale · q kᵀ) v over the rows up to
// i, and ds = p · (dy·v − dy·y), dq = scale · ds k, dk = scale · dsᵀ q, dv = pᵀ dy.
void reference_row(const AttentionProblem& x, int64_t start, int64_t i, int head, AttentionResults& out) {
  const int64_t d = x.config.head_dim;
  const int64_t e_columns = x.config.values();
  const int kv_head = head / (x.config.heads / x.config.kv_heads);
  const int64_t query = (start + i) * x.query_stride() + head * d;
  const int64_t output = (start + i) * x.output_stride() + head * e_columns;
  const auto key = [&](int64_t j) { return (start + j) * x.key_stride() + kv_head * d; };
  const auto value = [&](int64_t j) { return (start + j) * x.value_stride() + kv_head * e_columns; };
  Values p(static_cast<size_t>(i + 1));
  for (int64_t j = 0; j <= i; ++j) {
    p[static_cast<size_t>(j)] = x.config.scale * dot(x.q.data() + query, x.k.data() + key(j), d);
  }
  const double max = *std::max_element(p.begin(), p.end());
  double sum = 0;
  for (const double s : p) sum += std::exp(s - max);
  const double log_sum_exp = max + std::log(sum);
  out.log_sum_exp.at(static_cast<size_t>((start + i) * x.config.heads + head)) = log_sum_exp;
  double* y = out.y.data() + output;
  const double* dy = x.dy.data() + output;
  for (int64_t j = 0; j <= i; ++j) {
    double& e = p[static_cast<size_t>(j)];
    e = std::exp(e - log_sum_exp);
    for (int64_t c = 0; c < e_columns; ++c) y[c] += e * x.v.data()[value(j) + c];
  }
  const double delta = dot(dy, y, e_columns);
  for (int64_t j = 0; j <= i; ++j) {
    const double e = p[static_cast<size_t>(j)];
    const double ds = x.config.scale * e * (dot(dy, x.v.data() + value(j), e_columns) - delta);
    for (int64_t c = 0; c < d; ++c) {
      out.dq.data()[query + c] += ds * x.k.data()[key(j) + c];
      out.dk.data()[key(j) + c] += ds * x.q.data()[query + c];
    }
    for (int64_t c = 0; c < e_columns; ++c) out.dv.data()[value(j) + c] += e * dy[c];
  }
}

}  // namespace

AttentionConfig heads(int heads, int kv_heads, int64_t head_dim, int64_t value_dim) {
  return {heads, kv_heads, head_dim, 1 / std::sqrt(static_cast<double>(head_dim)), value_dim};
}

AttentionProblem::AttentionProblem(const AttentionCase& c, Random& random) : config(c.config) {
  for (const int64_t n : c.lengths) offsets.push_back(offsets.back() + n);
  q = values(random.tensor({rows(), query_stride()}, DType::f32, 2));
  k = values(random.tensor({rows(), key_stride()}, DType::f32));
  v = values(random.tensor({rows(), value_stride()}, DType::f32));
  dy = values(random.tensor({rows(), output_stride()}, DType::f32));
}

std::string AttentionProblem::trace() const {
  return format("{}/{} heads of {} and {}, offsets {}", config.heads, config.kv_heads, config.head_dim,
                config.values(), std::span<const int64_t>(offsets));
}

AttentionResults attention_reference(const AttentionProblem& x) {
  AttentionResults out = {Values(x.dy.size()), Values(static_cast<size_t>(x.rows() * x.config.heads)),
                          Values(x.q.size()), Values(x.k.size()), Values(x.v.size())};
  for (size_t b = 0; b + 1 < x.offsets.size(); ++b) {
    for (int64_t i = 0; i < x.offsets[b + 1] - x.offsets[b]; ++i) {
      for (int h = 0; h < x.config.heads; ++h) reference_row(x, x.offsets[b], i, h, out);
    }
  }
  return out;
}

}  // namespace phalanx::test
