#include "phalanx/train/memory.h"

#include <algorithm>
#include <map>
#include <vector>

#include "phalanx/model/stage.h"
#include "phalanx/parallel/parameter_store.h"
#include "phalanx/tensor/size_class.h"
#include "phalanx/train/local_elements.h"

namespace phalanx {
namespace {

// T tokens of a microbatch, or of a slice of one, D model width, F MLP width, E experts, K top-k, R rows that
// a rank receives, C rows in expert order (R·K slots). Under tp a rank has T/tp rows of the stream or all,
// all rows inside a layer, and 1/tp of its features.

// What one branch of a block (norm and layer) holds.
struct BranchMemory {
  int64_t saved = 0;  // by the tape, from forward to backward
  int64_t working =
      0;  // beside it, at most, in backward: gradients, and what is saved less what is dropped by then
  int64_t deferred = 0;   // by weight-gradient work that backward puts off
  int64_t undropped = 0;  // of `saved`, counted as dropped in `working`, but kept by deferred work
};

// One rank's layers, on a slice that sees those before it.
class Layers {
 public:
  Layers(const ModelConfig& model, DType dtype, int64_t tokens, int slices, const Layout& layout,
         bool sequence, int ulysses)
      : c_(model),
        item_(static_cast<int64_t>(dtype_size(dtype))),
        slices_(slices),
        t_(tokens),
        own_(tokens / layout.tp),
        tp_(layout.tp),
        ulysses_(ulysses),
        ring_(layout.cp / ulysses),
        ep_(layout.ep),
        etp_(layout.etp),
        sequence_(sequence && layout.tp > 1) {}

  int slices() const { return slices_; }
  /// The same for the slice of that number.
  Layers at_slice(int slice) const {
    Layers layers = *this;
    layers.slice_ = slice;
    return layers;
  }

  /// Bytes of a block for so many elements, of the compute dtype or of `item` bytes.
  int64_t block(int64_t elements) const { return block(elements, item_); }
  static int64_t block(int64_t elements, int64_t item) {
    return static_cast<int64_t>(size_class(static_cast<size_t>(elements * item)).bytes);
  }

  // The stream's rows, [T, D] or [T/tp, D].
  int64_t x() const { return block(stream_rows() * c_.width); }
  // All rows, where a layer gathers them.
  int64_t gathered() const { return sequence_ ? block(t_ * c_.width) : 0; }
  // A layer's input as its weight gradients need it.
  int64_t normed() const { return sequence_ ? gathered() : x(); }
  // A norm saves its input and statistics; what it gives is saved by the layer behind it.
  int64_t norm() const { return x() + (c_.norm == NormKind::layernorm ? 2 : 1) * block(stream_rows()); }

  // One slice's k and v inside attention, of the heads that the rank has there: Ulysses may share heads.
  int64_t kv() const {
    const int64_t heads = c_.heads / tp_;
    if (c_.attention == AttentionKind::mla)
      return block(t_ * heads * c_.head_dim) + block(t_ * heads * c_.mla.v_head_dim);
    const int64_t kv_heads = c_.kv_heads / std::min(c_.kv_heads, tp_);
    return 2 * block(t_ * ulysses_ * std::max<int64_t>(kv_heads / ulysses_, 1) * c_.head_dim);
  }
  // What the last slice's backward leaves of a layer: gradients of the k and v of all slices before it.
  int64_t first_given() const { return slice_ + 1 == slices_ ? slice_ * kv() : 0; }
  // What recomputation cannot drop: later slices see k and v.
  int64_t kept_for_later() const { return slices_ > 1 ? kv() : 0; }

  BranchMemory attention() const {
    if (c_.attention == AttentionKind::mla) return mla();
    const int64_t heads = c_.heads / tp_;
    const int kv_heads = c_.kv_heads / std::min(c_.kv_heads, tp_);
    const int64_t q = block(t_ * heads * c_.head_dim);
    const int64_t own_kv = 2 * block(t_ * kv_heads * c_.head_dim);
    BranchMemory m;
    m.saved = norm() + x() + 2 * q + kv() + block(t_ * heads);  // normed; q, y; k, v; log-sum-exp
    if (ulysses_ > 1) m.saved += q;                             // y by heads, and by rows
    // dy; of y, q, k and v; then parts of dq (ops/attention.h) and what is on its way around the ring, or dx
    // by q, k and v and two sums of those, less the normed input.
    const int64_t inputs = sequence_ ? 2 * gathered() : 4 * x();
    const int64_t attending = (longest_square() >= 512 ? 2 * q : 0) + (1 + travelling()) * seen() * kv();
    m.working = x() + 2 * q + std::max(attending, own_kv + inputs) + dropped();
    m.deferred = normed() + 2 * q + own_kv + x() + gathered();  // normed, y, dq, dk, dv, dy and that gathered
    m.undropped = x();
    return m;
  }

  BranchMemory mlp(int layer) const {
    if (c_.mlp == MlpKind::moe && layer >= c_.moe.dense_layers) return moe();
    const bool gated = c_.mlp == MlpKind::swiglu || c_.mlp == MlpKind::moe;
    BranchMemory m = dense(c_.mlp_width / tp_, gated);
    m.saved += norm() + x();
    m.working += x() + dropped() + 2 * gathered();
    m.deferred += normed() + x() + gathered();
    return m;
  }

  // Final norm, output head and loss: norm's, normed, logits and their log-sum-exp. Logits become their own
  // gradient, which lives through the whole backward.
  int64_t logits() const { return block(t_ * ((c_.vocabulary + tp_ - 1) / tp_)) + block(2 * t_); }
  int64_t head() const { return norm() + x() + logits(); }

 private:
  int64_t stream_rows() const { return sequence_ ? own_ : t_; }

  // Rows of the longest sequence, or part of one, that attention sees at once.
  int64_t longest_square() const {
    const int64_t length = c_.context / slices_;
    return ring_ == 1 ? length : std::min(length, t_ * ulysses_ / 2);
  }
  // Slices whose k and v attention has at once.
  int seen() const { return slice_ + 1; }
  // Blocks of k and v, or of their gradients, that backward holds beside the rank's own: of another rank, the
  // next one, and gradients that leave and arrive.
  int travelling() const { return ring_ == 1 ? 0 : ring_ == 2 ? 3 : 4; }

  // With dropout, a branch's dy is not the residual's.
  int64_t dropped() const { return c_.dropout > 0 ? x() : 0; }

  // The two products of a dense MLP, without its input and output: h (gate and up) and the activation a.
  BranchMemory dense(int64_t width, bool gated) const {
    const int64_t a = block(t_ * width);
    const int64_t h = gated ? block(2 * t_ * width) : a;
    return {.saved = h + a, .working = h, .deferred = a + h, .undropped = a};  // working: da, dh, less a
  }

  // Multi-head latent attention.
  BranchMemory mla() const {
    const int64_t heads = c_.heads / tp_;
    const int64_t q = block(t_ * heads * c_.head_dim);
    const int64_t y = block(t_ * heads * c_.mla.v_head_dim);
    const int64_t kv = block(t_ * heads * (c_.mla.qk_nope_head_dim + c_.mla.v_head_dim));
    const int64_t k_rope = block(t_ * c_.mla.qk_rope_head_dim);
    const int64_t stream = block(stream_rows());
    // Latents of the stream's rows and of all rows; without one queries come from the stream.
    const bool narrow_q = c_.mla.q_lora_rank > 0;
    const int64_t q_own = narrow_q ? block(stream_rows() * c_.mla.q_lora_rank) : 0;
    const int64_t q_all = narrow_q ? block(t_ * c_.mla.q_lora_rank) : block(t_ * c_.width);
    const int64_t kv_own = block(stream_rows() * c_.mla.kv_lora_rank);
    const int64_t kv_all = block(t_ * c_.mla.kv_lora_rank);
    const int64_t q_gathered = sequence_ ? q_all : 0;
    const int64_t kv_gathered = sequence_ ? kv_all : 0;

    BranchMemory m;
    // normed; latents before and behind their norms; q and k; v and y; log-sum-exp
    m.saved =
        norm() + x() + 2 * (q_own + kv_own) + (narrow_q ? 2 : 1) * stream + 2 * (q + y) + block(t_ * heads);
    if (ulysses_ > 1) m.saved += y;  // by heads, and by rows
    // dy; of y, v, q and k; then parts of dq and what is on its way around the ring, or the gradients of kv
    // and k_rope, and of one latent after the other.
    const int64_t attending =
        (longest_square() >= 512 ? 2 * q : 0) + (seen() - 1 + travelling() * seen()) * (q + y);
    const int64_t queries = std::max(q_gathered + q_all, 2 * q_own + x());
    const int64_t keys = x() + std::max(kv_gathered + kv_all, 2 * kv_own);
    m.working = x() + 2 * (q + y) + std::max(attending, kv + k_rope + std::max(queries, keys)) + dropped();
    // normed, dy and that gathered, y, dq, dkv, dk_rope, latents and their gradients
    m.deferred = 2 * x() + gathered() + y + q + kv + k_rope + (narrow_q ? q_all : q_gathered) + kv_all +
                 q_own + kv_own;
    return m;
  }

  // How many ranks of ep a token is sent to, if all sets of K experts are alike.
  double ranks_of_token() const {
    double misses = 1;  // that none of the K chosen is among one rank's experts
    const double local = static_cast<double>(c_.moe.experts) / ep_;
    for (int k = 0; k < c_.moe.top_k; ++k) {
      misses *= std::max(0.0, c_.moe.experts - local - k) / (c_.moe.experts - k);
    }
    return ep_ * (1 - misses);
  }

  BranchMemory moe() const {
    const int64_t k = c_.moe.top_k;
    const int64_t width = c_.moe.expert_width / etp_;
    const auto own_rows = static_cast<int64_t>(static_cast<double>(own_) * ranks_of_token());
    const int64_t rows = own_rows * etp_;  // that ranks of etp gather
    const int64_t own_received = block(own_rows * c_.width);
    const int64_t received = block(rows * c_.width);       // [R, D]
    const int64_t x_expert = block(rows * k * c_.width);   // [C, D]
    const int64_t a_expert = block(rows * k * width);      // [C, F]
    const int64_t h_expert = block(2 * rows * k * width);  // [C, 2F]
    const int64_t scores = block(own_ * c_.moe.experts);
    const int64_t index =
        2 * block(rows * k, 8) + block(rows * k) + block(own_ * std::min<int64_t>(k, ep_), 8);
    const int64_t experts = 2 * x_expert + a_expert + h_expert + index;  // x, y, a, h; order, weights, handle
    const int64_t for_z_loss = c_.moe.z_loss != 0 ? scores + block(own_) : 0;
    const int64_t router = block(own_ * k, 8) + block(own_ * k) + scores + for_z_loss;
    const bool shares = c_.moe.shared_experts > 0;
    const BranchMemory shared = shares ? dense(c_.moe.shared_experts * width / tp_, true) : BranchMemory();
    const int64_t shared_dx = shares ? x() : 0;

    BranchMemory m;
    m.saved = norm() + x() + router + experts + shared.saved;
    // The rows of dy travel while the shared experts compute; then the experts' own backward, which drops a,
    // and in the end the rows of dx travel back, when all that the experts saved but y is dropped.
    const int64_t sending = own_received + received + shared.working;
    const int64_t computing = received + x_expert + h_expert + shared_dx - shared.saved;
    const int64_t parts = etp_ > 1 ? received : 0;  // of own rows, from ranks of etp
    const int64_t returning =
        2 * received + own_received + parts + x_expert + shared_dx + x() - a_expert - h_expert - shared.saved;
    m.working = x() + dropped() + std::max({sending, computing, returning});
    m.deferred = 2 * x() + scores + 2 * x_expert + a_expert + h_expert + shared.deferred;
    m.undropped = a_expert + shared.deferred;
    return m;
  }

  const ModelConfig& c_;
  int64_t item_;
  int slices_;
  int slice_ = 0;
  int64_t t_;    // rows inside a layer
  int64_t own_;  // of them this rank's
  int tp_;
  int ulysses_;
  int ring_;
  int64_t ep_;
  int64_t etp_;
  bool sequence_;
};

struct Live {
  int64_t saved = 0;
  int64_t working = 0;
  int64_t sum() const { return saved + working; }
};

// What the tape keeps of a layer's branches from forward to backward.
int64_t kept_by(const Layers& layers, int layer, Recompute again) {
  if (again == Recompute::full) return layers.x() + layers.kept_for_later();
  return (again == Recompute::attention ? layers.x() + layers.kept_for_later() : layers.attention().saved) +
         (again == Recompute::mlp ? layers.x() : layers.mlp(layer).saved);
}

int64_t saved_by(const Layers& layers, const StagePart& part, const Recomputation& again) {
  int64_t saved = part.predicts ? layers.head() : 0;
  for (int i = part.first_layer; i < part.end_layer; ++i)
    saved += kept_by(layers, i, again.of(i - part.first_layer));
  return saved;
}

// What the backward of one microbatch holds at most, and what is left when it ends: with its weight gradients
// put off, what those need.
struct BackwardMemory {
  Live peak;
  int64_t left = 0;
};

BackwardMemory backward_memory(const Layers& layers, const StagePart& part, const Recomputation& again,
                               bool deferring) {
  int64_t before =
      saved_by(layers, part, again);  // by the layers that backward has not reached, and the head
  // The head's product with logits, its weights transposed or its input's gradient beside them.
  Live peak = {before, layers.x() + 2 * layers.gathered()};
  int64_t kept = 0;
  if (part.predicts) {
    before -= layers.head();
    kept = layers.logits() + (deferring ? layers.x() : 0);
  }
  for (int i = part.end_layer; i-- > part.first_layer;) {
    const BranchMemory attention = layers.attention();
    const BranchMemory mlp = layers.mlp(i);
    const Recompute what = again.of(i - part.first_layer);
    // What runs again is here before its branch goes back; of a whole layer both branches.
    const int64_t attention_kept =
        what == Recompute::attention ? layers.x() + layers.kept_for_later() : attention.saved;
    before += attention_kept + mlp.saved - kept_by(layers, i, what);
    for (const BranchMemory* branch : {&mlp, &attention}) {
      if (branch == &attention) before += attention.saved - attention_kept;
      const Live now = {before + kept, branch->working + (deferring ? branch->undropped : 0)};
      if (now.sum() > peak.sum()) peak = now;
      before -= branch->saved;
      kept += deferring ? branch->deferred : 0;
    }
    kept += layers.first_given();
  }
  if (kept > peak.sum()) peak = {kept, 0};
  const int64_t given = (part.end_layer - part.first_layer) * layers.first_given();
  return {peak, deferring ? kept - given : 0};
}

// What the forward of another microbatch has saved when a backward holds most. They change places where they
// wait, that is in MoE layers; without any the forward ends before the backward begins.
int64_t beside_backward(const Layers& layers, const ModelConfig& c, const StagePart& part,
                        const Recomputation& again) {
  if (again.what != Recompute::none) return saved_by(layers, part, again);
  int64_t saved = 0;
  for (int i = part.first_layer; i < part.end_layer; ++i) {
    saved += layers.attention().saved;
    if (c.mlp == MlpKind::moe && i >= c.moe.dense_layers) return saved + layers.norm() + layers.x();
    saved += layers.mlp(i).saved;
  }
  return saved + (part.predicts ? layers.head() : 0);
}

// The most that a rank's list holds at once.
Live peak_of(const Steps& steps, const Layers& layers, const ModelConfig& c,
             const std::vector<StagePart>& parts, const Recomputation& again) {
  std::map<std::pair<int, int>, int64_t> live;   // by chunk and microbatch, or slice
  std::map<std::pair<int, int>, int64_t> given;  // gradients of k and v from later slices, by microbatch
  Live peak;
  const int slices = layers.slices();
  const auto part_of = [&](int chunk) { return parts[static_cast<size_t>(chunk)]; };
  const auto add = [&](const Live& now) {
    int64_t others = 0;
    for (const auto* held : {&live, &given}) {
      for (const auto& [passage, bytes] : *held) others += bytes;
    }
    if (others + now.sum() > peak.sum()) peak = {others + now.saved, now.working};
  };
  for (const Step& s : steps) {
    if (s.op == StepOp::F) live[{s.chunk, s.microbatch}] = saved_by(layers, part_of(s.chunk), again);
    if (s.goes_backward()) {
      const auto passage = std::pair(s.backward_chunk(), s.backward_microbatch());
      const StagePart part = part_of(passage.first);
      const int slice = passage.second % slices;
      const BackwardMemory backward = backward_memory(layers.at_slice(slice), part, again, s.op == StepOp::I);
      live.erase(passage);
      Live now = backward.peak;
      if (s.op == StepOp::FB) now.saved += beside_backward(layers, c, part_of(s.chunk), again);
      add(now);
      if (backward.left > 0) live[passage] = backward.left;
      given[{passage.first, passage.second / slices}] =
          (part.end_layer - part.first_layer) * slice * layers.kv();
    }
    if (s.op == StepOp::FB) live[{s.chunk, s.microbatch}] = saved_by(layers, part_of(s.chunk), again);
    add({});
    if (s.op == StepOp::W) live.erase({s.chunk, s.microbatch});
  }
  return peak;
}

// Streams that are posted ahead, or kept until the next is sent (parallel/pipeline.h).
int64_t streams_of(const Schedule& schedule, int rank) {
  int64_t n = 0;
  for (int chunk = 0; chunk < schedule.chunks_per_rank; ++chunk) {
    for (const auto& other : {schedule.previous({rank, chunk}), schedule.next({rank, chunk})}) {
      if (other && other->rank != rank) n += 2;  // activations one way, gradients the other
    }
  }
  return n;
}

}  // namespace

MemoryAccount memory_account(const TrainConfig& config, int64_t vocabulary, int pp_rank) {
  ModelConfig model = config.model;
  model.vocabulary = vocabulary;
  const Layout layout = layout_of(config.parallel);
  const RowShare share = row_share(config.train.batch, config.train.microbatch, layout.dp, 0);
  const int slices = config.train.slices;
  const int64_t tokens = share.microbatch * (model.context / slices) / layout.cp;
  const Layers layers(model, config.train.dtype, tokens, slices, layout, config.parallel.sequence,
                      ulysses_ranks(model, layout, config.parallel.ulysses));
  const Schedule schedule = schedule_of(config, share.microbatches());
  const std::vector<StagePart> parts =
      parts_of_rank(schedule, pp_rank, model.layers, stage_layers(config.parallel));

  const Live peak =
      peak_of(schedule.steps[static_cast<size_t>(pp_rank)], layers, model, parts, config.train.recompute);
  const Elements elements = elements_of(model, layout, parts);
  const auto zero = static_cast<Zero>(config.parallel.zero);
  const int64_t own = shared_out(elements, layout, {.stage = zero, .shard = config.parallel.shard});
  // Of ZeRO-2 and 3 beside the shares: of gradients the unit at work and the one that is being summed, of
  // weights that one and the one that comes next.
  const int64_t units = 2 * layers.block(elements.layer);
  MemoryAccount account;
  account.weights =
      layers.block(zero == Zero::weights ? own : elements.all) + (zero == Zero::weights ? units : 0);
  account.gradients = layers.block(zero >= Zero::gradients ? own : elements.all) +
                      (zero >= Zero::gradients ? units + layers.block(elements.over_stages) : 0);
  account.optimizer = config.optimizer.kind == OptimizerConfig::Kind::adamw ? 2 * layers.block(own) : 0;
  account.batch = share.microbatches() * slices * (3 * Layers::block(tokens, 4) + Layers::block(tokens, 8));
  account.activations = peak.saved + streams_of(schedule, pp_rank) * slices * layers.x();
  account.working = peak.working;
  return account;
}

}  // namespace phalanx
