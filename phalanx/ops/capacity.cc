#include <algorithm>
#include <cmath>
#include <numeric>

#include "phalanx/base/pooled.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/route.h"

namespace phalanx {
namespace {

// In the order of their numbers: where each token's row stands.
PooledVector<int64_t> rows_by_number(const Tensor& numbers_T) {
  const auto numbers = numbers_T.span<const int64_t>();
  PooledVector<int64_t> rows(numbers.size());
  std::iota(rows.begin(), rows.end(), 0);
  const auto number_of = [&](int64_t row) { return numbers[static_cast<size_t>(row)]; };
  std::ranges::sort(rows, {}, number_of);
  const auto twice = std::ranges::adjacent_find(rows, {}, number_of);
  PHX_CHECK(twice == rows.end(), "two tokens have number {}", number_of(*twice));
  return rows;
}

}  // namespace

int64_t room_in_sequence(int64_t tokens, int64_t top_k, const ExpertRoom& room) {
  const double even = static_cast<double>(tokens * top_k) / static_cast<double>(room.experts);
  return static_cast<int64_t>(std::ceil(room.factor * even));
}

Tensor within_capacity(const Tensor& topk_idx, const Tensor& numbers, const Tensor& offsets,
                       const ExpertRoom& room) {
  const int64_t k = topk_idx.dim(1);
  const auto o = offsets.span<const int64_t>();
  const Shape all_taken = {std::ssize(o) - 1, room.experts};
  PHX_CHECK(!room.taken_BE.defined() || room.taken_BE.shape() == all_taken, "{} taken, not {}",
            room.taken_BE.shape(), all_taken);
  const auto whole = (room.whole_offsets.defined() ? room.whole_offsets : offsets).span<const int64_t>();
  PHX_CHECK(numbers.rows() == topk_idx.rows() && o.back() == topk_idx.rows() && whole.size() == o.size(),
            "{} numbers, {} choices, {} rows in {} sequences, {} of them whole", numbers.rows(),
            topk_idx.rows(), o.back(), o.size() - 1, whole.size() - 1);
  if constexpr (kHaveCuda) {
    if (topk_idx.on_cuda()) return cuda::within_capacity(topk_idx, numbers, offsets, room);
  }
  const TraceSpan span(TraceKind::elementwise, "within_capacity", 2 * topk_idx.bytes());
  const Tensor kept = Tensor::empty(topk_idx.shape(), DType::i64);
  const PooledVector<int64_t> rows = rows_by_number(numbers);
  const Tensor taken_BE = room.taken_BE.defined() ? room.taken_BE : Tensor::zeros(all_taken, DType::i64);
  for (size_t b = 0; b + 1 < o.size(); ++b) {
    const int64_t most = room_in_sequence(whole[b + 1] - whole[b], k, room);
    int64_t* const taken = taken_BE.data<int64_t>() + static_cast<int64_t>(b) * room.experts;
    for (int64_t t = o[b]; t < o[b + 1]; ++t) {
      const int64_t first = rows[static_cast<size_t>(t)] * k;
      for (int64_t i = first; i < first + k; ++i) {
        const int64_t e = topk_idx.data<int64_t>()[i];
        kept.data<int64_t>()[i] = taken[e]++ < most ? e : -1;
      }
    }
  }
  return kept;
}

}  // namespace phalanx
