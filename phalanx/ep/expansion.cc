#include "phalanx/ep/expansion.h"

#include <cstring>

namespace phalanx::ep {
namespace {

// Where each expert's rows begin.
PooledVector<std::byte*> bases(const Expansion& expansion, const Tensor& rows_N) {
  PooledVector<std::byte*> out;
  for (size_t e = 0; e < expansion.experts.count.size(); ++e) {
    out.push_back(rows_N.raw() + static_cast<size_t>(expansion.experts.first[e]) * row_bytes(rows_N));
  }
  return out;
}

// f(slot, place) for each slot of [R, K] that names an expert.
template <class F>
void for_slots(const Expansion& expansion, F f) {
  const int64_t* const idx = expansion.topk_idx_RK.data<const int64_t>();
  const int64_t* row = expansion.layout.row_P.data<const int64_t>();  // pairs are in the order of slots
  for (int64_t slot = 0; slot < expansion.topk_idx_RK.numel(); ++slot) {
    if (idx[slot] >= 0) f(slot, expansion.experts.first[static_cast<size_t>(idx[slot])] + *row++);
  }
}

}  // namespace

ExpertRows count_expert_rows(const Rows& topk_idx_RK, int64_t experts, int64_t alignment) {
  ExpertRows out = {PooledVector<int64_t>(static_cast<size_t>(experts), 0), {0}};
  const int64_t slots = topk_idx_RK.count() * topk_idx_RK.data.dim(1);
  for (const int64_t e : topk_idx_RK.data.span<const int64_t>().first(static_cast<size_t>(slots))) {
    if (e >= 0) ++out.count[static_cast<size_t>(e)];
  }
  for (const int64_t n : out.count) {
    out.first.push_back(out.first.back() + (n + alignment - 1) / alignment * alignment);
  }
  return out;
}

Expansion expansion_of(const Tensor& topk_idx_RK, const ExpertMap& singles, ExpertRows experts) {
  return {layout_of(topk_idx_RK, singles, PairOrder::by_slot), topk_idx_RK, std::move(experts)};
}

void expand_rows(const Expansion& expansion, const Tensor& x, const Tensor& out) {
  const PooledVector<std::byte*> to = bases(expansion, out);
  spread_rows(expansion.layout, x, to);
  for (size_t e = 0; e < to.size(); ++e) {
    const int64_t begin = expansion.experts.first[e] + expansion.experts.count[e];
    const Tensor between = out.slice(begin, expansion.experts.first[e + 1]);
    if (between.bytes() > 0) std::memset(between.raw(), 0, between.bytes());
  }
}

Tensor reduce_rows(const Expansion& expansion, const Tensor& y) {
  Tensor out = Tensor::empty(y.shape().with_rows(expansion.layout.tokens()), y.dtype());
  const PooledVector<std::byte*> from = bases(expansion, y);
  sum_rows(expansion.layout, PooledVector<const std::byte*>(from.begin(), from.end()), out);
  return out;
}

Tensor expand_slots(const Expansion& expansion, const Tensor& weights_RK) {
  Tensor out = Tensor::zeros({expansion.rows()}, weights_RK.dtype());
  visit_float(out.dtype(), [&](auto t) {
    const auto* const from = weights_RK.data<const decltype(t)>();
    auto* const to = out.data<decltype(t)>();
    for_slots(expansion, [&](int64_t slot, int64_t place) { to[place] = from[slot]; });
  });
  return out;
}

Tensor reduce_slots(const Expansion& expansion, const Tensor& weights_N) {
  Tensor out = Tensor::zeros(expansion.topk_idx_RK.shape(), weights_N.dtype());
  visit_float(out.dtype(), [&](auto t) {
    const auto* const from = weights_N.data<const decltype(t)>();
    auto* const to = out.data<decltype(t)>();
    for_slots(expansion, [&](int64_t slot, int64_t place) { to[slot] = from[place]; });
  });
  return out;
}

}  // namespace phalanx::ep
