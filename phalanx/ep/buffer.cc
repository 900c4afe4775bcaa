#include "phalanx/ep/buffer.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "phalanx/base/error.h"
#include "phalanx/base/trace.h"

namespace phalanx::ep {
namespace {

int64_t total(const PooledVector<int64_t>& rows) {
  return std::accumulate(rows.begin(), rows.end(), int64_t{0});
}

size_t row_bytes(const Tensor& t) { return static_cast<size_t>(t.row_size()) * dtype_size(t.dtype()); }

// The rows of x at `tokens`.
Tensor gather(const Tensor& x, const Tensor& tokens) {
  const Tensor out = Tensor::empty(x.shape().with_rows(tokens.rows()), x.dtype());
  const TraceSpan span(TraceKind::elementwise, "gather", 2 * out.bytes());
  const size_t bytes = row_bytes(x);
  for (int64_t i = 0; i < tokens.rows(); ++i) {
    const auto from = static_cast<size_t>(tokens.data<int64_t>()[i]);
    std::memcpy(out.raw() + static_cast<size_t>(i) * bytes, x.raw() + from * bytes, bytes);
  }
  return out;
}

// out[token] += row, in the order of rows, that is by rank.
Tensor scatter_sum(const Tensor& rows, const Tensor& tokens, int64_t count) {
  const Tensor out = Tensor::zeros(rows.shape().with_rows(count), rows.dtype());
  const TraceSpan span(TraceKind::elementwise, "scatter_sum", rows.bytes() + out.bytes());
  const int64_t width = rows.dim(1);
  visit_float(rows.dtype(), [&](auto t) {
    using T = decltype(t);
    for (int64_t i = 0; i < rows.rows(); ++i) {
      const T* in = rows.data<T>() + i * width;
      T* to = out.data<T>() + tokens.data<int64_t>()[i] * width;
      for (int64_t d = 0; d < width; ++d) to[d] += in[d];
    }
  });
  return out;
}

// Global expert numbers become those of `rank`'s, or −1 with weight 0.
void keep_local(Tensor topk_idx, Tensor weights, int64_t local_experts, int rank) {
  const int64_t first = rank * local_experts;
  int64_t* local = topk_idx.data<int64_t>();
  visit_float(weights.dtype(), [&](auto t) {
    auto* w = weights.data<decltype(t)>();
    for (int64_t i = 0; i < weights.numel(); ++i) {
      local[i] -= first;
      if (local[i] >= 0 && local[i] < local_experts) continue;
      local[i] = -1;
      w[i] = 0;
    }
  });
}

}  // namespace

Buffer::Buffer(Group& ep, int experts, Group* etp)
    : group_(ep), slices_(etp), local_experts_(experts / ep.size()) {
  if (experts % ep.size() != 0) throw Error("ep = {} does not divide {} experts", ep.size(), experts);
}

Task<Dispatched> Buffer::dispatch(Tensor x, Tensor topk_idx, Tensor weights) {
  const auto ranks = static_cast<size_t>(group_.size());
  const int64_t k = topk_idx.dim(1);
  const int64_t* idx = topk_idx.data<int64_t>();
  Dispatched out;
  out.handle.tokens = x.rows();
  out.handle.send_rows.assign(ranks, 0);

  for (int64_t i = 0; i < x.rows() * k; ++i) {
    PHX_CHECK(idx[i] < local_experts_ * group_.size(), "token {} chose expert {} of {}", i / k, idx[i],
              local_experts_ * group_.size());
  }
  // Layout: a token goes once to every rank that owns one of its experts.
  const Tensor send_tokens = Tensor::empty({x.rows() * std::min<int64_t>(k, group_.size())}, DType::i64);
  int64_t sent = 0;
  for (size_t r = 0; r < ranks; ++r) {
    for (int64_t t = 0; t < x.rows(); ++t) {
      const bool goes = std::any_of(idx + t * k, idx + (t + 1) * k, [&](int64_t e) {
        return e >= 0 && e / local_experts_ == static_cast<int64_t>(r);
      });
      if (!goes) continue;
      send_tokens.data<int64_t>()[sent++] = t;
      ++out.handle.send_rows[r];
    }
  }
  out.handle.send_tokens = send_tokens.slice(0, sent);

  const Tensor counts =
      Tensor::of(Shape{static_cast<int64_t>(ranks)}, std::span<const int64_t>(out.handle.send_rows));
  const PooledVector<int64_t> ones(ranks, 1);
  Work exchange_counts = group_.all_to_all(counts, ones, ones);
  const Tensor received_counts = co_await exchange_counts;
  const auto received = received_counts.span<int64_t>();
  out.handle.recv_rows.assign(received.begin(), received.end());

  const Handle& h = out.handle;
  Work send_x = group_.all_to_all(gather(x, h.send_tokens), h.send_rows, h.recv_rows);
  Work send_idx = group_.all_to_all(gather(topk_idx, h.send_tokens), h.send_rows, h.recv_rows);
  Work send_weights = group_.all_to_all(gather(weights, h.send_tokens), h.send_rows, h.recv_rows);
  const Tensor received_x = co_await send_x;
  const Tensor received_idx = co_await send_idx;
  const Tensor received_weights = co_await send_weights;
  keep_local(received_idx, received_weights, local_experts_, group_.rank());
  out.handle.slice_rows = co_await slices_.count(received_x.rows());
  PooledVector<Tensor> own = {received_x, received_idx, received_weights};
  PooledVector<Tensor> all = co_await slices_.gather(std::move(own), out.handle.slice_rows);
  out.x_RD = all_rows(all[0]);
  out.topk_idx_RK = {all[1], out.x_RD.live};
  out.weights_RK = all[2];
  co_return out;
}

Task<Rows> Buffer::dispatch(Tensor x, Handle h) {
  Work send = group_.all_to_all(gather(x, h.send_tokens), h.send_rows, h.recv_rows);
  const Tensor received = co_await send;
  PooledVector<Tensor> own = {received};
  const PooledVector<Tensor> all = co_await slices_.gather(std::move(own), h.slice_rows);
  co_return all_rows(all[0]);
}

Task<Combined> Buffer::combine(Rows y, Handle h, Tensor weights) {
  const int64_t rows = total(h.slice_rows);
  PHX_CHECK(y.count() == rows, "combine of {} rows, {} were dispatched", y.count(), rows);
  PooledVector<Tensor> parts = {y.data.slice(0, rows)};
  if (weights.defined()) parts.push_back(weights.slice(0, rows));
  const PooledVector<Tensor> own = co_await slices_.reduce(std::move(parts), h.slice_rows);
  Combined out;
  Work send = group_.all_to_all(own[0], h.recv_rows, h.send_rows);
  if (weights.defined()) {
    Work send_weights = group_.all_to_all(own[1], h.recv_rows, h.send_rows);
    const Tensor received_weights = co_await send_weights;
    out.weights_TK = scatter_sum(received_weights, h.send_tokens, h.tokens);
  }
  const Tensor received = co_await send;
  out.x_TD = scatter_sum(received, h.send_tokens, h.tokens);
  co_return out;
}

}  // namespace phalanx::ep
