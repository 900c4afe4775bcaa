#include <algorithm>
#include <cmath>

#include "phalanx/base/trace.h"
#include "phalanx/ops/route.h"

namespace phalanx {
namespace {

// By number: where each token's row stands. Numbers are neighbours.
Tensor places_by_number(const Tensor& numbers_T) {
  const auto numbers = numbers_T.span<const int64_t>();
  const Tensor places = Tensor::empty(numbers_T.shape(), DType::i64);
  if (numbers.empty()) return places;
  const int64_t first = *std::ranges::min_element(numbers);
  for (int64_t i = 0; i < std::ssize(numbers); ++i) {
    const int64_t at = numbers[static_cast<size_t>(i)] - first;
    PHX_CHECK(at < std::ssize(numbers), "token {} of {} from {} on", at + first, numbers.size(), first);
    places.data<int64_t>()[at] = i;
  }
  return places;
}

}  // namespace

Tensor within_capacity(const Tensor& topk_idx, const Tensor& numbers, const Tensor& offsets, int64_t experts,
                       double factor) {
  const int64_t k = topk_idx.dim(1);
  const auto o = offsets.span<const int64_t>();
  PHX_CHECK(numbers.rows() == topk_idx.rows() && o.back() == topk_idx.rows(),
            "{} numbers, {} choices, {} rows", numbers.rows(), topk_idx.rows(), o.back());
  const TraceSpan span(TraceKind::elementwise, "within_capacity", 2 * topk_idx.bytes());
  const Tensor kept = Tensor::empty(topk_idx.shape(), DType::i64);
  const Tensor places = places_by_number(numbers);
  const Tensor taken = Tensor::empty({experts}, DType::i64);
  for (size_t b = 0; b + 1 < o.size(); ++b) {
    const double even = static_cast<double>((o[b + 1] - o[b]) * k) / static_cast<double>(experts);
    const auto room = static_cast<int64_t>(std::ceil(factor * even));
    std::ranges::fill(taken.span<int64_t>(), 0);
    for (int64_t t = o[b]; t < o[b + 1]; ++t) {
      const int64_t row = places.data<int64_t>()[t] * k;
      for (int64_t i = row; i < row + k; ++i) {
        const int64_t e = topk_idx.data<int64_t>()[i];
        kept.data<int64_t>()[i] = taken.data<int64_t>()[e]++ < room ? e : -1;
      }
    }
  }
  return kept;
}

}  // namespace phalanx
