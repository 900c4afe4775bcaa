#include "phalanx/ops/op_times.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "phalanx/base/error.h"
#include "phalanx/base/function_ref.h"
#include "phalanx/base/median.h"
#include "phalanx/base/philox.h"
#include "phalanx/ops/attention.h"
#include "phalanx/ops/cross_entropy.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/embedding.h"
#include "phalanx/ops/gelu.h"
#include "phalanx/ops/layernorm.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/optimizer.h"
#include "phalanx/ops/permute.h"
#include "phalanx/ops/rmsnorm.h"
#include "phalanx/ops/rope.h"
#include "phalanx/ops/route.h"
#include "phalanx/ops/swiglu.h"

namespace phalanx {
namespace {

// Tensors for the ops, and their times.
class Stand {
 public:
  Stand(DType dtype, double seconds, const std::function<void(const OpTime&)>& on_time)
      : dtype_(dtype), seconds_(seconds), on_time_(on_time) {}

  Tensor random(const Shape& shape) {
    const Tensor t = Tensor::empty(shape, dtype_);
    visit_float(dtype_, [&](auto e) {
      for (auto& v : t.span<decltype(e)>()) v = static_cast<decltype(e)>(stream_.normal(drawn_++));
    });
    return t;
  }
  Tensor tokens(int64_t n, int64_t vocabulary) {
    const Tensor t = Tensor::empty({n}, DType::i32);
    for (int32_t& v : t.span<int32_t>()) {
      v = static_cast<int32_t>(stream_.uniform(drawn_++) * static_cast<double>(vocabulary));
    }
    return t;
  }

  /// Times f(), which calls one op, and asks that op's own span for its work.
  void time(std::string shape, FunctionRef<void()> f) {
    f();
    TraceRing ring(64);
    std::vector<double> seconds;
    double sum = 0;
    Span span;
    do {
      ring.clear();
      {
        const TraceScope scope(&ring);
        f();
      }
      PHX_CHECK(ring.count() == 1, "{} spans of one op", ring.count());
      span = ring.spans()[0];
      seconds.push_back(static_cast<double>(span.end_ns - span.begin_ns) * 1e-9);
      sum += seconds.back();
    } while (sum < seconds_);
    times_.push_back({.op = span.name,
                      .shape = std::move(shape),
                      .kind = span.kind,
                      .work = span.detail,
                      .seconds = std::max(median(std::move(seconds)), 1e-9)});
    if (on_time_) on_time_(times_.back());
  }

  std::vector<OpTime> take() { return std::move(times_); }

 private:
  DType dtype_;
  double seconds_;
  const std::function<void(const OpTime&)>& on_time_;
  RandomStream stream_{1, "bench"};
  uint64_t drawn_ = 0;
  std::vector<OpTime> times_;
};

std::string text(const Shape& a) { return format("{}", a); }
std::string text(const Shape& a, const Shape& b) { return format("{} {}", a, b); }

void products(Stand& stand, int64_t m, int64_t n, int64_t k) {
  const Tensor x = stand.random({m, k});
  const Tensor w = stand.random({n, k});
  const Tensor dy = stand.random({m, n});
  const Tensor dw = stand.random({n, k});
  stand.time(text(x.shape(), w.shape()), [&] { matmul_nt(x, w); });
  stand.time(text(dy.shape(), w.shape()), [&] { matmul(dy, w); });
  stand.time(text(dy.shape(), x.shape()), [&] { matmul_tn_into(dw, dy, x); });
}

void attention_ops(Stand& stand, const OpShapes& s) {
  const int64_t d = s.width / s.heads;
  const AttentionConfig config = {
      .heads = s.heads, .kv_heads = s.heads, .head_dim = d, .scale = 1 / std::sqrt(static_cast<double>(d))};
  const int64_t sequences = s.tokens / s.context;
  const Tensor offsets = Tensor::empty({sequences + 1}, DType::i64);
  for (int64_t b = 0; b <= sequences; ++b) offsets.data<int64_t>()[b] = b * s.context;
  const Tensor positions = Tensor::empty({s.tokens}, DType::i32);
  for (int64_t t = 0; t < s.tokens; ++t) positions.data<int32_t>()[t] = static_cast<int32_t>(t % s.context);
  const Tensor q = stand.random({s.tokens, s.width});
  const Tensor k = stand.random({s.tokens, s.width});
  const Tensor v = stand.random({s.tokens, s.width});
  const Tensor dy = stand.random({s.tokens, s.width});
  const Attended out = attention(q, k, v, offsets, config);
  const std::string shape = format("{} × [{}, {}, {}]", sequences, s.context, s.heads, d);
  stand.time(shape, [&] { attention(q, k, v, offsets, config); });
  stand.time(shape, [&] { attention_backward(dy, q, k, v, out, offsets, config); });
  if (d % 2 != 0) return;
  const Rotation turns = rotation(10000, d);
  stand.time(text(q.shape()), [&] { rope_into(q, positions, d, turns); });
}

void norms(Stand& stand, const OpShapes& s) {
  const Tensor x = stand.random({s.tokens, s.width});
  const Tensor dy = stand.random({s.tokens, s.width});
  const Tensor w = stand.random({s.width});
  const Tensor dw = stand.random({s.width});
  const RmsNormed rms = rmsnorm(x, w, 1e-5);
  const LayerNormed layer = layernorm(x, w, w, 1e-5);
  const std::string shape = text(x.shape());
  stand.time(shape, [&] { add(x, dy); });
  stand.time(shape, [&] { rmsnorm(x, w, 1e-5); });
  stand.time(shape, [&] { rmsnorm_backward(dy, x, w, rms.inv_rms_T, dw); });
  stand.time(shape, [&] { layernorm(x, w, w, 1e-5); });
  stand.time(shape, [&] { layernorm_backward(dy, x, w, layer, {dw, dw}); });
}

void activations(Stand& stand, const OpShapes& s) {
  const Tensor x = stand.random({s.tokens, s.mlp_width});
  const Tensor dy = stand.random({s.tokens, s.mlp_width});
  const Rows gate_up = all_rows(stand.random({s.tokens, 2 * s.mlp_width}));
  const Rows dy_rows = all_rows(dy);
  stand.time(text(x.shape()), [&] { gelu(x, Gelu::erf); });
  stand.time(text(x.shape()), [&] { gelu_backward(dy, x, Gelu::erf); });
  stand.time(text(gate_up.data.shape()), [&] { swiglu(gate_up); });
  stand.time(text(gate_up.data.shape()), [&] { swiglu_backward(dy_rows, gate_up); });
}

void vocabulary_ops(Stand& stand, const OpShapes& s) {
  const Tensor table = stand.random({s.vocabulary, s.width});
  const Tensor tokens = stand.tokens(s.tokens, s.vocabulary);
  const Tensor dy = stand.random({s.tokens, s.width});
  const Tensor logits = stand.random({s.tokens, s.vocabulary});
  const Tensor kept = cross_entropy(logits, tokens).log_sum_exp_T2;
  stand.time(text(table.shape()), [&] { embedding(table, tokens); });
  stand.time(text(table.shape()), [&] { embedding_backward_into(table, dy, tokens); });
  stand.time(text(logits.shape()), [&] { (void)cross_entropy(logits, tokens); });
  stand.time(text(logits.shape()), [&] { cross_entropy_backward_into(logits, tokens, kept, 1); });
}

void expert_ops(Stand& stand, const OpShapes& s) {
  const int64_t width = s.mlp_width / s.top_k;
  const RoutingConfig config = {.top_k = s.top_k};
  const Tensor logits = stand.random({s.tokens, s.experts});
  const Routing routing = route(logits, config);
  const Rows topk = all_rows(routing.topk_idx_TK);
  const ExpertOrder order = order_by_expert(topk, s.experts);
  const Rows x = all_rows(stand.random({s.tokens, s.width}));
  const Rows rows = permute(x, order);
  const Tensor w = stand.random({s.experts, 2 * width, s.width});
  const Tensor dw = stand.random({s.experts, 2 * width, s.width});
  const Rows h = grouped_matmul_nt(rows, w, order.offsets);
  const Rows a = swiglu(h);
  stand.time(text(logits.shape()), [&] { route(logits, config); });
  stand.time(text(topk.data.shape()), [&] { order_by_expert(topk, s.experts); });
  stand.time(text(x.data.shape()), [&] { permute(x, order); });
  stand.time(text(rows.data.shape(), w.shape()), [&] { grouped_matmul_nt(rows, w, order.offsets); });
  stand.time(text(h.data.shape(), w.shape()), [&] { grouped_matmul(h, w, order.offsets); });
  stand.time(text(h.data.shape(), rows.data.shape()),
             [&] { grouped_matmul_tn_into(dw, h, rows, order.offsets); });
  stand.time(text(rows.data.shape()), [&] { unpermute(rows, order, routing.weights_TK, x); });
  stand.time(text(h.data.shape()), [&] { weighted_swiglu_backward(a, h, order, routing.weights_TK); });
}

void optimizer_ops(Stand& stand, int64_t parameters) {
  const Tensor w = stand.random({parameters});
  const Tensor g = stand.random({parameters});
  const Tensor m = Tensor::zeros({parameters}, w.dtype());
  const Tensor v = Tensor::zeros({parameters}, w.dtype());
  stand.time(text(w.shape()), [&] { adamw_into({w, m, v, g}, 1, {.lr = 1e-6}); });
  stand.time(text(w.shape()), [&] { sgd_into(w, g, 1, 1e-6); });
}

void check(const OpShapes& s) {
  if (s.tokens % s.context != 0) throw Error("{} tokens are no whole sequences of {}", s.tokens, s.context);
  if (s.width % s.heads != 0) throw Error("width {} is not a multiple of {} heads", s.width, s.heads);
  if (s.top_k > s.experts) throw Error("the top {} of {} experts", s.top_k, s.experts);
  if (s.mlp_width % s.top_k != 0) throw Error("MLP width {} is not a multiple of {}", s.mlp_width, s.top_k);
}

}  // namespace

std::vector<OpTime> measure_ops(const OpShapes& shapes, DType dtype, double seconds,
                                const std::function<void(const OpTime&)>& on_time) {
  check(shapes);
  Stand stand(dtype, seconds, on_time);
  products(stand, shapes.tokens, shapes.width, shapes.width);
  products(stand, shapes.tokens, shapes.mlp_width, shapes.width);
  products(stand, shapes.tokens, shapes.vocabulary, shapes.width);
  attention_ops(stand, shapes);
  norms(stand, shapes);
  activations(stand, shapes);
  vocabulary_ops(stand, shapes);
  expert_ops(stand, shapes);
  optimizer_ops(stand, 4 * shapes.width * shapes.width + 2 * shapes.width * shapes.mlp_width);
  return stand.take();
}

}  // namespace phalanx
