// Attention by its definition in f64, with the whole T×T matrix, on fresh random inputs.
#pragma once

#include "phalanx/ops/attention.h"
#include "tests/ops/reference.h"

namespace phalanx::test {

/// value_dim 0: head_dim.
AttentionConfig heads(int heads, int kv_heads, int64_t head_dim, int64_t value_dim = 0);

struct AttentionCase {
  AttentionConfig config;
  std::vector<int64_t> lengths;  ///< of the sequences
};

/// Inputs whose elements f32 holds exactly.
struct AttentionProblem {
  AttentionConfig config;
  std::vector<int64_t> offsets = {0};
  Values q, k, v, dy;

  AttentionProblem(const AttentionCase& c, Random& random);
  int64_t rows() const { return offsets.back(); }
  int64_t query_stride() const { return config.heads * config.head_dim; }
  int64_t key_stride() const { return config.kv_heads * config.head_dim; }
  int64_t value_stride() const { return config.kv_heads * config.values(); }
  int64_t output_stride() const { return config.heads * config.values(); }
  std::string trace() const;
};

struct AttentionResults {
  Values y, log_sum_exp, dq, dk, dv;
};
inline constexpr Values AttentionResults::*kAttentionResults[] = {
    &AttentionResults::y, &AttentionResults::log_sum_exp, &AttentionResults::dq, &AttentionResults::dk,
    &AttentionResults::dv};
inline constexpr const char* kAttentionNames[] = {"y", "log-sum-exp", "dq", "dk", "dv"};

AttentionResults attention_reference(const AttentionProblem& x);

}  // namespace phalanx::test
