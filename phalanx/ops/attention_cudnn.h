// Attention in bf16 by cuDNN: what one call of it takes. For attention_bf16_cuda.cc and attention_merge.cu.
//
// T rows, H query heads, G KV heads, d columns of a head of q and k, e of one of v and y.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <span>

#include "phalanx/ops/attention.h"

namespace phalanx::cuda {

/// Some sequences of queries and of keys, with all heads or some neighbouring ones. Plans are kept by this
/// value (lent.h).
///
/// Dense sequences have equal numbers of rows and lie evenly; ragged ones have at most `queries` and `keys`
/// rows, and RaggedSequences tells where they are.
struct AttentionCall {
  bool backward = false;
  bool deterministic = false;  ///< of backward
  bool causal = false;
  bool ragged = false;
  int64_t batch = 0;       ///< sequences
  int64_t queries = 0;     ///< rows of a sequence
  int64_t keys = 0;        ///< likewise
  int64_t query_step = 0;  ///< dense: rows from one sequence's first to the next one's
  int64_t key_step = 0;
  int64_t query_rows = 0;  ///< ragged: rows of the tensors, or more
  int64_t key_rows = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t row_heads = 0;  ///< that a row has: H
  int64_t row_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t value_dim = 0;
  float scale = 0;

  auto operator<=>(const AttentionCall&) const = default;
};

/// Where ragged sequences begin in each tensor, in elements (i64 [batch + 1]), and their rows (i32 [batch]);
/// in device memory.
struct RaggedSequences {
  void* q = nullptr;
  void* k = nullptr;
  void* v = nullptr;
  void* y = nullptr;
  void* log_sum_exp = nullptr;
  void* queries = nullptr;
  void* keys = nullptr;
};

/// The first element of each tensor that the call sees. log_sum_exp is [T, H], but for a dense backward
/// [batch, heads, queries] of the call's own.
struct AttentionOperands {
  void* q = nullptr;
  void* k = nullptr;
  void* v = nullptr;
  void* y = nullptr;
  void* log_sum_exp = nullptr;
  void* dy = nullptr;
  void* dq = nullptr;
  void* dk = nullptr;
  void* dv = nullptr;
  RaggedSequences ragged;
};

/// Queued on the calling thread's stream; workspace comes from its pool. The algorithm is cuDNN's first
/// choice for the call. Error when it has none.
void run_cudnn(const AttentionCall& call, const AttentionOperands& operands);

// bf16 for attention and attention_backward of cuda_ops.h. What is added to may be bf16 or f32.
void attention_bf16(const std::array<Tensor, 3>& q_k_v, const Attended& out,
                    std::span<const AttentionTile> tiles, bool adds, const AttentionConfig& config);
void attention_backward_bf16(const AttentionBackward& in, const AttentionGradients& out,
                             std::span<const AttentionTile> tiles, bool adds, const AttentionConfig& config);

// attention_merge.cu:
/// Adds to `sums` (y in bf16 or f32) what other keys gave, `part` (y in bf16); rows of it whose log-sum-exp
/// is −∞ have seen none, and their y is not read.
void merge_attended(const Attended& sums, const Attended& part, int64_t value_dim);
/// sum (bf16 or f32) += part (bf16).
void add_part_into(const Tensor& sum, const Tensor& part);
/// [batch, heads, queries] of the call, from [T, H] at its first sequence's first row and first head.
Tensor heads_first(const AttentionCall& call, const float* log_sum_exp_TH, Device device);

}  // namespace phalanx::cuda
