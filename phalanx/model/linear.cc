#include "phalanx/model/linear.h"

#include "phalanx/ops/bias.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/layernorm.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/rmsnorm.h"
#include "phalanx/ops/swiglu_linear.h"
#include "phalanx/parallel/stream_products.h"

namespace phalanx {
namespace {

// Of what every rank has whole and feeds with the stream's rows: under sequence parallelism each sums its own
// rows into the gradient.
OverTp gradient_of_stream(const Builder& build) {
  return build.tensor.sequence() ? OverTp::parts : OverTp::alike;
}

// A vector that every rank has whole, for the stream's rows.
Parameter& add_vector(const Builder& build, const std::string& name, int64_t width, Init::Kind kind) {
  return build.store.add({.name = name,
                          .shape = {width},
                          .init = {.kind = kind},
                          .weight_decay = false,
                          .gradient = gradient_of_stream(build)});
}

class RmsNorm final : public Norm {
 public:
  RmsNorm(const Builder& build, const std::string& name, int64_t width, double eps)
      : w_(add_vector(build, name + ".w", width, Init::Kind::ones)), eps_(eps) {}

  Task<Tensor> forward(Tensor x_TD, Tape& tape) override {
    const Lease w = co_await w_.use();
    const RmsNormed out = rmsnorm(tape.save(x_TD), w.value(), eps_);
    tape.save(out.inv_rms_T);
    co_return out.y_TD;
  }

  Task<Tensor> backward(Tensor dy_TD, Tape& tape, Tensor also_TD) override {
    const Lease w = co_await w_.use();
    const Tensor inv_rms_T = tape.take();
    co_return rmsnorm_backward(dy_TD, tape.take(), w.value(), inv_rms_T, w_.grad(), also_TD);
  }

 private:
  Parameter& w_;
  double eps_;
};

class LayerNorm final : public Norm {
 public:
  LayerNorm(const Builder& build, const std::string& name)
      : w_(add_vector(build, name + ".w", build.config.width, Init::Kind::ones)),
        b_(build.config.bias ? &add_vector(build, name + ".b", build.config.width, Init::Kind::zeros)
                             : nullptr),
        eps_(build.config.norm_eps) {}

  Task<Tensor> forward(Tensor x_TD, Tape& tape) override {
    const Lease w = co_await w_.use();
    Tensor bias;
    if (b_) {
      const Lease b = co_await b_->use();
      bias = b.value();
    }
    LayerNormed out = layernorm(tape.save(x_TD), w.value(), bias, eps_);
    const Tensor y_TD = std::exchange(out.y_TD, Tensor());
    tape.save(out);
    co_return y_TD;
  }

  Task<Tensor> backward(Tensor dy_TD, Tape& tape, Tensor also_TD) override {
    const Lease w = co_await w_.use();
    const auto kept = tape.take<LayerNormed>();
    const LayerNormSums sums = {w_.grad(), b_ ? b_->grad() : Tensor(), also_TD};
    co_return layernorm_backward(dy_TD, tape.take(), w.value(), kept, sums);
  }

 private:
  Parameter& w_;
  Parameter* b_;
  double eps_;
};

Shape stacked(const LinearConfig& c, Shape one) {
  if (c.stacked == 1) return one;
  std::vector<int64_t> extents = {c.stacked};
  extents.insert(extents.end(), one.extents().begin(), one.extents().end());
  return Shape(extents);
}

Placement weight_placement(const LinearConfig& c) {
  if (c.cut == Cut::none) return {};
  if (c.cut == Cut::inputs) return {{.axis = Axis::tp, .dim = 1}};
  return {{.axis = Axis::tp, .dim = c.stacked == 1 ? 0 : 1, .parts = c.parts}};
}

// A weight as one matrix [stacked · out, in].
Tensor matrix(const Tensor& w) {
  const int64_t in = w.dim(w.shape().rank() - 1);
  return w.view({w.numel() / in, in});
}

// Ranks that share outputs feed them to different features, and so have parts of their gradient.
OverTp gradient_of(const Builder& build, const LinearConfig& c) {
  if (c.cut == Cut::none) return gradient_of_stream(build);
  return c.parts > 0 && c.parts < build.tensor.ranks() ? OverTp::parts : OverTp::alike;
}

Parameter& add_bias(const Builder& build, const std::string& name, const LinearConfig& c) {
  if (c.cut == Cut::inputs) return add_vector(build, name, c.out, Init::Kind::zeros);
  return build.store.add({.name = name,
                          .shape = stacked(c, {c.out}),
                          .placement = weight_placement(c),
                          .init = {.kind = Init::Kind::zeros},
                          .weight_decay = false,
                          .gradient = gradient_of(build, c)});
}

}  // namespace

Linear::Linear(const Builder& build, const std::string& name, const LinearConfig& c)
    : tensor_(build.tensor),
      cut_(c.cut),
      w_(build.store.add({.name = name + ".w",
                          .shape = stacked(c, {c.out, c.in}),
                          .placement = weight_placement(c),
                          .init = {.std = c.init_std},
                          .gradient = gradient_of(build, c)})),
      b_(c.bias ? &add_bias(build, name + ".b", c) : nullptr) {}

Task<Tensor> Linear::forward(Tensor x, Tensor also) {
  PHX_CHECK(cut_ != Cut::outputs, "{}: its rows are gathered elsewhere", w_.name());
  const Lease w = co_await w_.use();
  const std::array weight = {matrix(w.value())};
  Tensor y;
  if (cut_ == Cut::inputs && tensor_.ranks() > 1) {
    ReduceChunks chunks = tensor_.reduce_chunks({x.rows(), weight[0].rows()}, x);
    multiply_and_send(chunks, matmul_nt_into, std::array{x}, weight);
    y = co_await chunks.sum();
    co_await bias_into(y);
    if (also.defined()) add_into(y, also);
    co_return y;
  }
  y = Tensor::empty({x.rows(), weight[0].rows()}, x.dtype(), x.device());
  if (!b_) {
    linear_into(y, x, weight[0], {}, also);
    co_return y;
  }
  const Lease b = co_await b_->use();
  linear_into(y, x, weight[0], b.value(), also);
  co_return y;
}

Task<> Linear::bias_into(Tensor y) {
  if (!b_) co_return;
  const Lease b = co_await b_->use();
  add_bias_into(y, b.value());
}

void Linear::defer_gradients(const Tensor& dy, const Tensor& dy_stream, Tensor x, Tape& tape) {
  tape.defer([this, dy, dy_stream, x = std::move(x)] {
    const auto [dw, into] = w_.grad_sum();
    matmul_tn_into(matrix(dw), dy, x, into);
    if (b_) bias_backward_into(b_->grad(), dy_stream);
  });
}

Task<Tensor> Linear::backward(Tensor dy, Tensor x, Tape& tape, Tensor sum) {
  if (cut_ == Cut::inputs) {
    const auto multiply = [](const Tensor& dx, RowRun, const Tensor& dy_rows, const Tensor& w) {
      matmul_into(dx, dy_rows, w, Into::replace);
    };
    co_return co_await backward_of_cut(std::move(dy), std::move(x), tape, multiply);
  }
  defer_gradients(dy, dy, std::move(x), tape);
  const Lease w = co_await w_.use();
  if (!sum.defined()) co_return matmul(dy, matrix(w.value()));
  matmul_into(sum, dy, matrix(w.value()));
  co_return sum;
}

Task<Tensor> Linear::backward_gelu(Tensor dy, GeluRows x, Gelu kind, Tape& tape) {
  PHX_CHECK(cut_ == Cut::inputs, "{}: a GELU before features that are not cut", w_.name());
  const auto multiply = [h = x.h, kind](const Tensor& dh, RowRun rows, const Tensor& dy_rows,
                                        const Tensor& w) {
    matmul_gelu_backward_into(dh, dy_rows, w, h.slice(rows.begin, rows.end), kind);
  };
  co_return co_await backward_of_cut(std::move(dy), std::move(x.a), tape, multiply);
}

// multiply(dx's rows, which they are, dy's rows, w).
template <class Multiply>
Task<Tensor> Linear::backward_of_cut(Tensor dy, Tensor x, Tape& tape, Multiply multiply) {
  GatherChunks rows = tensor_.gather_chunks(dy);
  const Lease w = co_await w_.use();
  const Tensor weight = matrix(w.value());
  const Shape shape = {rows.rows(), weight.dim(1)};
  if (!tensor_.overlaps()) {  // x goes before its gradient comes
    const Tensor all = co_await rows.rest();
    defer_gradients(all, dy, std::move(x), tape);
    const Tensor dx = Tensor::empty(shape, all.dtype(), all.device());
    multiply(dx, RowRun{0, all.rows()}, all, weight);
    co_return dx;
  }
  const Tensor dx = Tensor::empty(shape, dy.dtype(), dy.device());
  const auto multiply_chunk = [&](RowRun run, const Tensor& chunk) {
    multiply(dx.slice(run.begin, run.end), run, chunk, weight);
  };
  co_await each_chunk(&rows, multiply_chunk);
  const Tensor all = co_await rows.rest();
  defer_gradients(all, dy, std::move(x), tape);
  co_return dx;
}

template <size_t N>
Task<typename GatheredLinears<N>::Weights> GatheredLinears<N>::weights() {
  Weights all;
  for (size_t i = 0; i < N; ++i) {
    Lease lease = co_await linears_[i].w_.use();
    all.matrices[i] = matrix(lease.value());
    all.leases.push_back(std::move(lease));
    if (!linears_[i].b_) continue;
    Lease bias = co_await linears_[i].b_->use();
    all.biases[i] = bias.value();
    all.leases.push_back(std::move(bias));
  }
  co_return all;
}

template <size_t N>
Task<std::array<Tensor, N>> GatheredLinears<N>::forward(Tensor x) {
  GatherChunks rows = tensor_.gather_chunks(std::move(x));
  const Weights w = co_await weights();
  std::array<Tensor, N> y;
  for (size_t i = 0; i < N; ++i) {
    const Tensor& matrix_i = w.matrices[i];
    y[i] = Tensor::empty({rows.rows(), matrix_i.rows()}, matrix_i.dtype(), matrix_i.device());
  }
  co_await linear_gathered(&rows, w.matrices, w.biases, y);
  co_return y;
}

template <size_t N>
Task<GeluRows> GatheredLinears<N>::forward_gelu(Tensor x, Gelu kind) requires(N == 1) {
  GatherChunks rows = tensor_.gather_chunks(std::move(x));
  const Weights w = co_await weights();
  const Tensor& weight = w.matrices[0];
  const Shape shape = {rows.rows(), weight.rows()};
  GeluRows out = {Tensor::empty(shape, weight.dtype(), weight.device()),
                  Tensor::empty(shape, weight.dtype(), weight.device())};
  const auto multiply = [&](RowRun run, const Tensor& chunk) {
    const GeluRows to = {out.h.slice(run.begin, run.end), out.a.slice(run.begin, run.end)};
    linear_gelu_into(to, chunk, weight, w.biases[0], kind);
  };
  co_await each_chunk(&rows, multiply);
  co_return out;
}

template <size_t N>
Task<Tensor> GatheredLinears<N>::forward_swiglu(Tensor x) requires(N == 1) {
  GatherChunks rows = tensor_.gather_chunks(std::move(x));
  const Weights w = co_await weights();
  const Tensor all = co_await rows.rest();
  co_return linear_swiglu(all, w.matrices[0], w.biases[0]);
}

template <size_t N>
Task<Tensor> GatheredLinears<N>::backward(std::array<Tensor, N> dy, Tensor x, Tape& tape) {
  GatherChunks rows = tensor_.gather_chunks(std::move(x));
  const Weights w = co_await weights();
  if (!tensor_.overlaps()) {
    Tensor all = co_await rows.rest();
    defer_gradients(dy, std::move(all), tape);
  }
  ReduceChunks dx = tensor_.reduce_chunks({rows.rows(), w.matrices[0].dim(1)}, w.matrices[0]);
  multiply_and_send(dx, matmul_into, dy, w.matrices);
  if (tensor_.overlaps()) {  // the weights' gradients while dx travels
    Tensor all = co_await rows.rest();
    defer_gradients(dy, std::move(all), tape);
  }
  co_return co_await dx.sum();
}

template <size_t N>
void GatheredLinears<N>::defer_gradients(const std::array<Tensor, N>& dy, Tensor all, Tape& tape) {
  for (size_t i = 0; i + 1 < N; ++i) linears_[i].defer_gradients(dy[i], dy[i], all, tape);
  linears_[N - 1].defer_gradients(dy[N - 1], dy[N - 1], std::move(all), tape);
}

template class GatheredLinears<1>;
template class GatheredLinears<3>;

std::unique_ptr<Norm> make_rms_norm(const Builder& build, const std::string& name, int64_t width,
                                    double eps) {
  return std::make_unique<RmsNorm>(build, name, width, eps);
}

std::unique_ptr<Norm> make_norm(const Builder& build, const std::string& name) {
  if (build.config.norm == NormKind::layernorm) return std::make_unique<LayerNorm>(build, name);
  return make_rms_norm(build, name, build.config.width, build.config.norm_eps);
}

}  // namespace phalanx
