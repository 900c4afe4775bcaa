#include "phalanx/ep/buffer.h"

#include <numeric>

#include "phalanx/base/error.h"

namespace phalanx::ep {
namespace {

int64_t total(const PooledVector<int64_t>& rows) {
  return std::accumulate(rows.begin(), rows.end(), int64_t{0});
}

// Global expert numbers become those of `rank`'s, or −1 with weight 0.
void keep_local(Tensor topk_idx, Tensor weights, const ExpertMap& experts, int rank) {
  int64_t* local = topk_idx.data<int64_t>();
  visit_float(weights.dtype(), [&](auto t) {
    auto* w = weights.data<decltype(t)>();
    for (int64_t i = 0; i < weights.numel(); ++i) {
      local[i] -= experts.first(rank);
      if (local[i] >= 0 && local[i] < experts.count(rank)) continue;
      local[i] = -1;
      w[i] = 0;
    }
  });
}

}  // namespace

Buffer::Buffer(Group& ep, int experts, Group* etp) : Buffer(ep, ExpertMap::even(experts, ep.size()), etp) {}

Buffer::Buffer(Group& ep, ExpertMap experts, Group* etp)
    : group_(ep),
      transfer_(ep.shares_memory() ? direct_transfer(ep) : message_transfer(ep)),
      slices_(etp),
      experts_(std::move(experts)) {
  if (experts_.ranks() != ep.size()) {
    throw Error("experts of {} ranks for a group of {}", experts_.ranks(), ep.size());
  }
}

Task<Dispatched> Buffer::dispatch(Tensor x, Tensor topk_idx, Tensor weights) {
  Dispatched out;
  out.handle.route = co_await transfer_->plan(layout_of(topk_idx, experts_));
  PooledVector<Tensor> rows = {x, topk_idx, weights};
  PooledVector<Tensor> own = co_await transfer_->spread(std::move(rows), out.handle.route);
  keep_local(own[1], own[2], experts_, group_.rank());
  out.handle.slice_rows = co_await slices_.count(own[0].rows());
  PooledVector<Tensor> all = co_await slices_.gather(std::move(own), out.handle.slice_rows);
  out.x_RD = all_rows(all[0]);
  out.topk_idx_RK = {all[1], out.x_RD.live};
  out.weights_RK = all[2];
  co_return out;
}

Task<Rows> Buffer::dispatch(Tensor x, Handle h) {
  PooledVector<Tensor> rows = {x};
  PooledVector<Tensor> own = co_await transfer_->spread(std::move(rows), std::move(h.route));
  const PooledVector<Tensor> all = co_await slices_.gather(std::move(own), h.slice_rows);
  co_return all_rows(all[0]);
}

Task<Combined> Buffer::combine(Rows y, Handle h, Tensor weights) {
  const int64_t rows = total(h.slice_rows);
  PHX_CHECK(y.count() == rows, "combine of {} rows, {} were dispatched", y.count(), rows);
  PooledVector<Tensor> parts = {y.data.slice(0, rows)};
  if (weights.defined()) parts.push_back(weights.slice(0, rows));
  PooledVector<Tensor> own = co_await slices_.reduce(std::move(parts), h.slice_rows);
  PooledVector<Tensor> sums = co_await transfer_->collect(std::move(own), std::move(h.route));
  Combined out = {sums[0], {}};
  if (weights.defined()) out.weights_TK = sums[1];
  co_return out;
}

}  // namespace phalanx::ep
