#include "phalanx/parallel/ring_attention.h"

#include "phalanx/ops/elementwise.h"
#include "phalanx/parallel/context_rows.h"

namespace phalanx {
namespace {

// Keys and values, or their gradients. Nothing, if not defined.
struct KvBlock {
  Tensor k;
  Tensor v;
};

KvBlock empty_like(const KvBlock& block) {
  return {Tensor::empty(block.k.shape(), block.k.dtype()), Tensor::empty(block.v.shape(), block.v.dtype())};
}

// A block on its way: `sent` to the next rank, `received` from the one before.
struct Passing {
  KvBlock sent;
  KvBlock received;
};

Work pass_on(Group& ring, const Passing& first, const Passing& second = {}) {
  const int next = (ring.rank() + 1) % ring.size();
  const int before = (ring.rank() + ring.size() - 1) % ring.size();
  PooledVector<P2P> messages;
  for (const Passing* p : {&first, &second}) {
    for (const Tensor* t : {&p->sent.k, &p->sent.v}) {
      if (t->defined()) messages.push_back(send_to(next, *t));
    }
    for (const Tensor* t : {&p->received.k, &p->received.v}) {
      if (t->defined()) messages.push_back(recv_from(before, *t));
    }
  }
  return ring.exchange(std::move(messages));
}

// This rank's queries against the block that it has after so many steps.
AttentionTiles tiles_at(const Group& ring, int step, const Tensor& sequence_offsets) {
  const auto offsets = sequence_offsets.span<const int64_t>();
  const int owner = (ring.rank() + ring.size() - step) % ring.size();
  return attention_tiles(offsets, ring_rows(offsets.back(), ring.size(), ring.rank()),
                         ring_rows(offsets.back(), ring.size(), owner));
}

}  // namespace

Task<Attended> RingAttention::forward(Tensor q, Tensor k, Tensor v, Tensor sequence_offsets,
                                      AttentionConfig config) {
  if (ring_.size() == 1) co_return attention(q, k, v, sequence_offsets, config);
  const int last = ring_.size() - 1;
  const Attended sums = attended_nothing(q, config);
  KvBlock block = {k, v};
  for (int step = 0; step < last; ++step) {
    const KvBlock next = empty_like(block);
    Work work = pass_on(ring_, {block, next});
    attention_into(sums, q, block.k, block.v, tiles_at(ring_, step, sequence_offsets), config);
    co_await work;
    block = next;
  }
  attention_into(sums, q, block.k, block.v, tiles_at(ring_, last, sequence_offsets), config);
  co_return sums;
}

Task<AttentionGradients> RingAttention::backward(AttentionBackward in, Tensor sequence_offsets,
                                                 AttentionConfig config) {
  if (ring_.size() == 1) {
    co_return attention_backward(in.dy_THd, in.q_THd, in.k_SGd, in.v_SGd, in.forward, sequence_offsets,
                                 config);
  }
  const Tensor dq = Tensor::zeros(in.q_THd.shape(), in.q_THd.dtype());
  KvBlock gradients;  // of the block that this rank had a step ago
  for (int step = 0; step < ring_.size(); ++step) {
    const KvBlock block = {in.k_SGd, in.v_SGd};
    const KvBlock next = step + 1 < ring_.size() ? empty_like(block) : KvBlock();
    const KvBlock earlier = step > 0 ? empty_like(block) : KvBlock();  // gradients, from ranks before
    const KvBlock leaving = next.k.defined() ? block : KvBlock();
    Work work = pass_on(ring_, {leaving, next}, {gradients, earlier});
    gradients = {Tensor::zeros(block.k.shape(), block.k.dtype()),
                 Tensor::zeros(block.v.shape(), block.v.dtype())};
    attention_backward_into({dq, gradients.k, gradients.v}, in, tiles_at(ring_, step, sequence_offsets),
                            config);
    co_await work;
    if (step > 0) {
      add_into(gradients.k, earlier.k);
      add_into(gradients.v, earlier.v);
    }
    in.k_SGd = next.k;
    in.v_SGd = next.v;
  }
  const KvBlock home = empty_like(gradients);
  Work work = pass_on(ring_, {gradients, home});
  co_await work;
  const AttentionGradients out = {dq, home.k, home.v};
  co_return out;
}

}  // namespace phalanx
