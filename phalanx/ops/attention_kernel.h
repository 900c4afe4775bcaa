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

/// Queries first … first + rows − 1 of one sequence and head; `first` is a multiple of kBlockRows. Pointers
/// stand at row 0 of the sequence, in this head's columns.
template <class T>
struct QueryBlock {
  const T* q;
  const T* k;
  const T* v;
  T* y;
  T* log_sum_exp;
  int64_t first;
  int64_t rows;
};

/// Keys begin … end − 1 of one sequence of n rows and one KV head, `begin` a multiple of kBlockRows, against
/// all queries from `begin` on of the `group` heads that share it. Pointers stand at row 0 of the sequence,
/// in the columns of the (first) head. dq holds rows from `begin` on and is written; so are dk and dv of the
/// range.
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
};

/// Elements of scratch memory, 64-byte aligned, that the calls below need.
int64_t forward_scratch(const Shape& shape);
int64_t backward_scratch(const Shape& shape, int64_t keys);

void forward(const QueryBlock<float>& block, const Shape& shape, float* scratch);
void forward(const QueryBlock<double>& block, const Shape& shape, double* scratch);
void backward(const KeyRange<float>& range, const Shape& shape, float* scratch);
void backward(const KeyRange<double>& range, const Shape& shape, double* scratch);

}  // namespace phalanx::attention_kernel
