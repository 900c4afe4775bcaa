#include "phalanx/ops/embedding.h"

#include <algorithm>
#include <cstring>

#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/embedding.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

// Each thread takes some columns of every row, so that each sum runs in token order without locks.
template <class T>
void backward(const Tensor& dtable, const Tensor& dy, const Tensor& tokens, int64_t first) {
  const int64_t width = dy.dim(1);
  const int64_t rows = dtable.rows();
  T* const table = dtable.data<T>();
  const T* const gd = dy.data<T>();
  const auto token = tokens.span<const int32_t>();
  const int64_t columns = token.size() * static_cast<size_t>(width) <= kBlockElements
                              ? width
                              : std::max<int64_t>(64, width / 8 / 16 * 16);
  parallel_for(width, std::max<int64_t>(columns, 1), [&](int64_t begin, int64_t end) HWY_ATTR {
    const hn::ScalableTag<T> d;
    const T* g = gd + begin;
    for (const int32_t t : token) {
      const int64_t local = t - first;
      if (local >= 0 && local < rows) {
        T* row = table + local * width + begin;
        for_lanes(d, end - begin, [&](auto at, int64_t i) PHX_LANES {
          at.store(hn::Add(at.load(d, row + i), at.load(d, g + i)), d, row + i);
        });
      }
      g += width;
    }
  });
}

void embedding_backward_kernel(const Tensor& dtable, const Tensor& dy, const Tensor& tokens, int64_t first) {
  visit_float(dy.dtype(), [&](auto t) { backward<decltype(t)>(dtable, dy, tokens, first); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(embedding_backward_kernel);

void check_tokens(const Tensor& tokens, int64_t vocabulary) {
  for (const int32_t token : tokens.span<const int32_t>()) {
    PHX_CHECK(token >= 0 && token < vocabulary, "token {} of a vocabulary of {}", token, vocabulary);
  }
}
}  // namespace

Tensor embedding(const Tensor& table, const Tensor& tokens, VocabularyPart part) {
  if constexpr (kHaveCuda) {
    if (table.on_cuda()) return cuda::embedding(table, tokens, part);
  }
  check_tokens(tokens, part.vocabulary(table.rows()));
  const Tensor y = Tensor::empty({tokens.rows(), table.dim(1)}, table.dtype());
  const TraceSpan span(TraceKind::elementwise, "embedding", 2 * y.bytes());
  const size_t row_bytes = static_cast<size_t>(table.dim(1)) * dtype_size(table.dtype());
  const int32_t* const token = tokens.data<int32_t>();
  parallel_for(tokens.rows(), block_rows(table.dim(1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::byte* const to = y.raw() + static_cast<size_t>(i) * row_bytes;
      const int64_t row = token[i] - part.first;
      if (row >= 0 && row < table.rows()) {
        std::memcpy(to, table.raw() + static_cast<size_t>(row) * row_bytes, row_bytes);
      } else {
        std::memset(to, 0, row_bytes);
      }
    }
  });
  return y;
}

void embedding_backward_into(Tensor dtable, const Tensor& dy, const Tensor& tokens, VocabularyPart part) {
  PHX_CHECK(tokens.numel() == dy.rows() && dtable.dim(1) == dy.dim(1), "embedding gradient {} from {} at {}",
            dtable.shape(), dy.shape(), tokens.shape());
  if constexpr (kHaveCuda) {
    if (dtable.on_cuda()) return cuda::embedding_backward_into(dtable, dy, tokens, part);
  }
  check_tokens(tokens, part.vocabulary(dtable.rows()));
  const TraceSpan span(TraceKind::elementwise, "embedding_backward_into", 3 * dy.bytes());
  HWY_DYNAMIC_DISPATCH(embedding_backward_kernel)(dtable, dy, tokens, part.first);
}

}  // namespace phalanx
#endif
