// What attention.cc asks of its vector kernels: one block of queries forward, one range of keys backward. Not
// for others.
#pragma once

#include <cstdint>

namespace phalanx::attention_kernel {

/// Queries are taken in blocks of so many rows from their sequence's start; keys likewise.
inline constexpr int64_t kBlockRows = 64;

/// Elements from row to row, and what all heads share.
struct Shape {
  int64_t head_dim = 0;       ///< columns of a head of q and k
  int64_t value_dim = 0;      ///< of v and y
  int64_t query_stride = 0;   ///< of q and its gradient
  int64_t key_stride = 0;     ///< of k and its gradient
  int64_t value_stride = 0;   ///< of v and its gradient
  int64_t output_stride = 0;  ///< of y and its gradient
  int64_t heads = 0;          ///< stride of the log-sum-exp
  double scale = 0;
};

/// Up to kBlockRows queries of one head and `keys` keys that they see: all of them, or, if causal, query i
/// all but the last rows − 1 − i; then keys − rows is a multiple of kBlockRows. Pointers stand at the first
/// query and the first key, in this head's columns.
template <class T>
struct QueryBlock {
  const T* q;
  const T* k;
  const T* v;
  T* y;
  T* log_sum_exp;
  int64_t rows;
  int64_t keys;
  bool causal;
  bool adds;  ///< y and log_sum_exp hold what other keys gave (none: 0 and −∞)
};

/// Keys begin … end − 1 of one KV head, `begin` a multiple of kBlockRows, against the queries of the `group`
/// heads that share it: all n, or, if causal, those from `begin` on, query i with the keys up to i. Pointers
/// stand at query and key 0, in the columns of the (first) head; dq at the first of those queries. dq is
/// written or added to, and so are dk and dv of the range.
template <class T>
struct KeyRange {
  const T* q;
  const T* k;
  const T* v;
  const T* y;
  const T* dy;
  const T* log_sum_exp;
  T* dq;
  T* dk;
  T* dv;
  int64_t n;
  int64_t begin;
  int64_t end;
  int64_t group;
  bool causal;
  bool adds_to_queries;
  bool adds_to_keys;

  int64_t first_query() const { return causal ? begin : 0; }
};

/// Elements of scratch memory, 64-byte aligned, that the calls below need.
int64_t forward_scratch(const Shape& shape);
int64_t backward_scratch(const Shape& shape, int64_t keys);

void forward(const QueryBlock<float>& block, const Shape& shape, float* scratch);
void forward(const QueryBlock<double>& block, const Shape& shape, double* scratch);
void backward(const KeyRange<float>& range, const Shape& shape, float* scratch);
void backward(const KeyRange<double>& range, const Shape& shape, double* scratch);

}  // namespace phalanx::attention_kernel
