#include "phalanx/ep/layout.h"

#include <algorithm>
#include <cstring>

#include "phalanx/base/parallel_for.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/blocks.h"
#include "phalanx/ops/stream_copy.h"

namespace phalanx::ep {

namespace {

// Adds a rank to a token's, in their order; gives the end.
int32_t* add_rank(int32_t* first, int32_t* last, int32_t rank, PairOrder order) {
  if (order != PairOrder::by_rank) {
    int32_t* const end = order == PairOrder::every_slot ? last : std::remove(first, last, rank);
    *end = rank;
    return end + 1;
  }
  int32_t* const at = std::lower_bound(first, last, rank);
  if (at != last && *at == rank) return last;
  std::copy_backward(at, last, last + 1);
  *at = rank;
  return last + 1;
}

}  // namespace

Layout layout_of(const Tensor& topk_idx, const ExpertMap& experts, PairOrder order) {
  const int ranks = experts.ranks();
  const int64_t tokens = topk_idx.rows();
  const int64_t k = topk_idx.dim(1);
  const int64_t* idx = topk_idx.data<int64_t>();
  const int64_t most = tokens * (order == PairOrder::every_slot ? k : std::min<int64_t>(k, ranks));
  Layout out = {Tensor::empty({tokens + 1}, DType::i64), Tensor::empty({most}, DType::i32),
                Tensor::empty({most}, DType::i64), PooledVector<int64_t>(static_cast<size_t>(ranks), 0)};
  int64_t* const first = out.first_T.data<int64_t>();
  int32_t* const rank = out.rank_P.data<int32_t>();
  int64_t* const row = out.row_P.data<int64_t>();
  int64_t pairs = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    first[t] = pairs;
    for (const int64_t e : std::span(idx + t * k, static_cast<size_t>(k))) {
      PHX_CHECK(e >= -1 && e < experts.experts(), "token {} chose expert {} of {}", t, e, experts.experts());
      if (e < 0) continue;
      pairs = add_rank(rank + first[t], rank + pairs, experts.owner(e), order) - rank;
    }
    for (int64_t p = first[t]; p < pairs; ++p) row[p] = out.rows[static_cast<size_t>(rank[p])]++;
  }
  first[tokens] = pairs;
  return out;
}

DispatchLayout dispatch_layout(const Tensor& topk_idx, const ExpertMap& experts) {
  if (topk_idx.dtype() != DType::i64 || topk_idx.shape().rank() != 2) {
    throw Error("topk_idx is {} {}, not i64 [tokens, top-k]", dtype_name(topk_idx.dtype()), topk_idx.shape());
  }
  const int64_t tokens = topk_idx.rows();
  const int64_t k = topk_idx.dim(1);
  DispatchLayout out = {Tensor::zeros({experts.ranks()}, DType::i32),
                        Tensor::zeros({experts.experts()}, DType::i32),
                        Tensor::zeros({tokens, experts.ranks()}, DType::u8)};
  const auto per_expert = out.tokens_per_expert.span<int32_t>();
  for (int64_t i = 0; i < topk_idx.numel(); ++i) {
    const int64_t e = topk_idx.data<int64_t>()[i];
    if (e < -1 || e >= experts.experts()) {
      throw Error("token {} chooses expert {}, there are {}", i / k, e, experts.experts());
    }
    if (e < 0) continue;
    ++per_expert[static_cast<size_t>(e)];
    out.is_token_in_rank.data<uint8_t>()[i / k * experts.ranks() + experts.owner(e)] = 1;
  }
  const auto per_rank = out.tokens_per_rank.span<int32_t>();
  for (int64_t i = 0; i < out.is_token_in_rank.numel(); ++i) {
    per_rank[static_cast<size_t>(i % experts.ranks())] += out.is_token_in_rank.data<uint8_t>()[i];
  }
  return out;
}

void spread_rows(const Layout& layout, const Tensor& x, std::span<std::byte* const> to) {
  const size_t bytes = row_bytes(x);
  const TraceSpan span(TraceKind::elementwise, "spread_rows",
                       x.bytes() + static_cast<size_t>(layout.pairs()) * bytes);
  const bool stream = past_caches(layout, x) &&
                      std::ranges::all_of(to, [&](const std::byte* base) { return can_stream(base, bytes); });
  parallel_for(layout.tokens(), block_rows(x.row_size()), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const std::byte* const from = x.raw() + static_cast<size_t>(t) * bytes;
      const Pairs pairs(layout, t);
      for (size_t p = 0; p < pairs.ranks.size(); ++p) {
        std::byte* const base = to[static_cast<size_t>(pairs.ranks[p])];
        std::byte* const row = base + static_cast<size_t>(pairs.rows[p]) * bytes;
        if (stream) {
          stream_copy(row, from, bytes);
        } else if (bytes > 0) {
          std::memcpy(row, from, bytes);
        }
      }
    }
    stream_fence();
  });
}

}  // namespace phalanx::ep
