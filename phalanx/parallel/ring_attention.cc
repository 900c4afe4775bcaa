#include "phalanx/parallel/ring_attention.h"

#include <optional>

#include "phalanx/ops/cast.h"
#include "phalanx/parallel/context_rows.h"

namespace phalanx {
namespace {

// A rank's own keys and values, or their gradients: its rows' and, before them, those of earlier slices.
using KvBlocks = PooledVector<KvBlock>;

template <class F>
KvBlocks of_each(const KvBlocks& blocks, F f) {
  KvBlocks out;
  for (const KvBlock& block : blocks) out.push_back(f(block));
  return out;
}

KvBlocks all_like(const KvBlocks& blocks) {
  return of_each(blocks, [](const KvBlock& b) { return empty_like(b); });
}

// Of sums of several parts over tensors of this dtype.
DType sum_dtype(DType dtype) { return dtype == DType::bf16 ? DType::f32 : dtype; }

Tensor no_gradient(const Tensor& of) { return Tensor::zeros(of.shape(), sum_dtype(of.dtype()), of.device()); }

KvBlocks no_gradients(const KvBlocks& blocks) {
  return of_each(blocks, [](const KvBlock& b) {
    return KvBlock{no_gradient(b.k_SGd), no_gradient(b.v_SGd)};
  });
}

// A sum in the dtype of what it is the sum over.
Tensor as_summands(const Tensor& sum, DType dtype) {
  if (sum.dtype() == dtype) return sum;
  Tensor rounded = Tensor::empty(sum.shape(), dtype, sum.device());
  narrow_into(rounded, sum);
  return rounded;
}

// Blocks on their way: `sent` to the next rank, `received` from the one before.
struct Passing {
  KvBlocks sent;
  KvBlocks received;
};

Work pass_on(Group& ring, const Passing& first, const Passing& second = {}) {
  const int next = (ring.rank() + 1) % ring.size();
  const int before = (ring.rank() + ring.size() - 1) % ring.size();
  PooledVector<P2P> messages;
  for (const Passing* p : {&first, &second}) {
    for (const KvBlock& block : p->sent) {
      messages.push_back(send_to(next, block.k_SGd));
      messages.push_back(send_to(next, block.v_SGd));
    }
    for (const KvBlock& block : p->received) {
      messages.push_back(recv_from(before, block.k_SGd));
      messages.push_back(recv_from(before, block.v_SGd));
    }
  }
  return ring.exchange(std::move(messages));
}

// This rank's queries against the keys of rank `owner`, of the same slice.
AttentionTiles own_tiles(const Group& ring, int owner, const Tensor& sequence_offsets) {
  const auto offsets = sequence_offsets.span<const int64_t>();
  return attention_tiles(offsets, ring_rows(offsets.back(), ring.size(), ring.rank()),
                         ring_rows(offsets.back(), ring.size(), owner));
}

// Against those of an earlier slice, all of which they see.
AttentionTiles earlier_tiles(const Group& ring, int owner, const Tensor& of_queries, const Tensor& of_keys) {
  const auto own = [&](const Tensor& offsets, int rank) {
    return offsets_in(offsets, ring_rows(offsets.span<const int64_t>().back(), ring.size(), rank));
  };
  const Tensor queries = own(of_queries, ring.rank());
  const Tensor keys = own(of_keys, owner);
  return attention_rectangles(queries.span<const int64_t>(), keys.span<const int64_t>());
}

// The earlier slices' blocks, then the slice's own.
KvBlocks own_blocks(const SequenceRows& rows, const Tensor& k, const Tensor& v) {
  KvBlocks blocks;
  for (int s = 0; rows.history && s < rows.slice; ++s) {
    blocks.push_back(rows.history->slices()[static_cast<size_t>(s)].kv);
  }
  blocks.push_back({k, v});
  return blocks;
}

// Block number i of those that this rank has after so many steps around the ring.
AttentionTiles tiles_at(const Group& ring, int step, size_t i, const SequenceRows& rows) {
  const int owner = (ring.rank() + ring.size() - step) % ring.size();
  if (!rows.history || i == static_cast<size_t>(rows.slice)) return own_tiles(ring, owner, rows.offsets);
  return earlier_tiles(ring, owner, rows.offsets, rows.history->slices()[i].offsets);
}

// One rank's queries, forward and backward, against the blocks that it has after so many steps.
struct Queries {
  const Group& ring;
  const SequenceRows& rows;
  const AttentionConfig& config;

  void attend(const Attended& sums, const Tensor& q, const KvBlocks& blocks, int step) const {
    for (size_t i = 0; i < blocks.size(); ++i) {
      attention_into(sums, q, blocks[i].k_SGd, blocks[i].v_SGd, tiles_at(ring, step, i, rows), config);
    }
  }
  // Adds to dq and to the blocks' gradients.
  void attend_backward(const Tensor& dq, const KvBlocks& gradients, const AttentionBackward& of_queries,
                       const KvBlocks& blocks, int step) const {
    AttentionBackward in = of_queries;
    for (size_t i = 0; i < blocks.size(); ++i) {
      in.k_SGd = blocks[i].k_SGd;
      in.v_SGd = blocks[i].v_SGd;
      attention_backward_into({dq, gradients[i].k_SGd, gradients[i].v_SGd}, in, tiles_at(ring, step, i, rows),
                              config);
    }
  }
};

// Adds to the blocks' gradients what they have from slices behind this one; gives its own, and leaves the
// others in the history.
KvBlock settle(const KvBlocks& gradients, const SequenceRows& rows) {
  if (!rows.history) return gradients.back();
  std::vector<KvHistory::Slice>& slices = rows.history->slices();
  PHX_CHECK(slices.size() == gradients.size(), "{} slices in the history, backward of number {}",
            slices.size(), rows.slice);
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (slices[i].gradients.defined()) add_into(gradients[i], slices[i].gradients);
    slices[i].gradients = gradients[i];
  }
  rows.history->drop_last();
  return gradients.back();
}

}  // namespace

Task<Attended> RingAttention::forward(Tensor q, Tensor k, Tensor v, SequenceRows rows,
                                      AttentionConfig config) {
  if (rows.history) rows.history->keep(rows.slice, {k, v}, rows.offsets);
  if (ring_.size() == 1 && rows.slice == 0) co_return attention(q, k, v, rows.offsets, config);
  const int last = ring_.size() - 1;
  const Queries queries = {ring_, rows, config};
  const Attended sums = attended_nothing(q, config);
  KvBlocks blocks = own_blocks(rows, k, v);
  for (int step = 0; step < last; ++step) {
    KvBlocks next = all_like(blocks);
    Work work = pass_on(ring_, {blocks, next});
    queries.attend(sums, q, blocks, step);
    co_await work;
    blocks = std::move(next);
  }
  queries.attend(sums, q, blocks, last);
  const Attended out = {as_summands(sums.y_THd, q.dtype()), sums.log_sum_exp_TH};
  co_return out;
}

Task<AttentionGradients> RingAttention::backward(AttentionBackward in, SequenceRows rows,
                                                 AttentionConfig config) {
  if (ring_.size() == 1 && !rows.history) {
    co_return attention_backward(in.dy_THd, in.q_THd, in.k_SGd, in.v_SGd, in.forward, rows.offsets, config);
  }
  const Queries queries = {ring_, rows, config};
  const DType dtype = in.q_THd.dtype();
  const Tensor dq = no_gradient(in.q_THd);
  KvBlocks blocks = own_blocks(rows, in.k_SGd, in.v_SGd);
  KvBlocks gradients;  // of the blocks that this rank had a step ago
  for (int step = 0; step < ring_.size(); ++step) {
    const KvBlocks next = step + 1 < ring_.size() ? all_like(blocks) : KvBlocks();
    const KvBlocks earlier = all_like(gradients);  // from ranks before
    const KvBlocks leaving = next.empty() ? KvBlocks() : blocks;
    std::optional<Work> work;
    if (ring_.size() > 1) work = pass_on(ring_, {leaving, next}, {gradients, earlier});
    gradients = no_gradients(blocks);
    queries.attend_backward(dq, gradients, in, blocks, step);
    if (work) {
      Work& passing = *work;  // g++ 12.2 would copy *work
      co_await passing;
    }
    for (size_t i = 0; i < earlier.size(); ++i) add_into(gradients[i], earlier[i]);
    blocks = next;
  }
  if (ring_.size() > 1) {
    const KvBlocks home = all_like(gradients);
    Work work = pass_on(ring_, {gradients, home});
    co_await work;
    gradients = home;
  }
  const KvBlock own = settle(gradients, rows);
  const AttentionGradients out = {as_summands(dq, dtype), as_summands(own.k_SGd, dtype),
                                  as_summands(own.v_SGd, dtype)};
  co_return out;
}

}  // namespace phalanx
