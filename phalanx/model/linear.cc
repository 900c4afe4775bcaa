#include "phalanx/model/linear.h"

#include "phalanx/model/norm.h"
#include "phalanx/ops/bias.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/swiglu.h"
#include "phalanx/ops/swiglu_linear.h"
#include "phalanx/parallel/stream_products.h"

namespace phalanx {
namespace {

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

// Blocks of a rank are those of the whole weight, so that its scales, and its rows', are, too.
void check_fp8(const std::string& name, const LinearConfig& c, int ranks) {
  const auto check = [&](int64_t features, int64_t multiple, const char* what) {
    if (features % multiple == 0) return;
    throw Error("{}: products in FP8 want {} of a multiple of {}, not {}", name, what, multiple, features);
  };
  check(c.in, kTermPad, "inputs");
  check(c.out, kTermPad, "outputs");
  if (ranks == 1) return;
  if (c.cut == Cut::inputs) check(c.in / ranks, kScaleGroup, "inputs on each rank of tp");
  if (c.cut == Cut::outputs) {
    check(c.out / (c.parts > 0 ? c.parts : ranks), kScaleGroup, "outputs on each rank of tp");
  }
}

// x itself where it is in FP8, else the rows of it that have come.
LinearRows rows_of(LinearRows x, const Tensor& come) {
  if (x.x_MK.defined()) return {come};
  return x;
}

}  // namespace

Linear::Linear(const Builder& build, const std::string& name, const LinearConfig& c)
    : tensor_(build.tensor),
      products_(build.store.products()),
      cut_(c.cut),
      w_(build.store.add({.name = name + ".w",
                          .shape = stacked(c, {c.out, c.in}),
                          .placement = weight_placement(c),
                          .init = {.std = c.init_std},
                          .gradient = gradient_of(build, c)})),
      b_(c.bias ? &add_bias(build, name + ".b", c) : nullptr) {
  if (products_ == Products::fp8) check_fp8(name, c, build.tensor.ranks());
}

LinearRows Linear::rows(Tensor x) const {
  const bool in_chunks = cut_ == Cut::inputs && tensor_.overlaps();
  if (products_ == Products::fp8 && !in_chunks) return fp8_input(x);
  return {std::move(x)};
}

LinearGradient Linear::gradient(const Tensor& dy) const {
  const bool in_chunks = cut_ != Cut::none && tensor_.overlaps();
  if (products_ == Products::fp8 && !in_chunks) return fp8_gradient(dy);
  return {dy};
}

Task<Tensor> Linear::forward(LinearRows x, Tensor also) {
  PHX_CHECK(cut_ != Cut::outputs, "{}: its rows are gathered elsewhere", w_.name());
  const Lease w = co_await w_.use();
  const LinearWeight weight = LinearWeight::forward(matrix(w.value()), products_);
  const Tensor& w_NK = weight.w_NK();
  const Shape shape = {x.rows(), w_NK.rows()};
  if (cut_ == Cut::inputs && tensor_.ranks() > 1) {
    ReduceChunks chunks = tensor_.reduce_chunks(shape, w_NK);
    multiply_and_send(chunks, [&](const Tensor& part, RowRun run) {
      weight.multiply(part, x.slice(run.begin, run.end), Into::replace);
    });
    const Tensor sum = co_await chunks.sum();
    co_await bias_into(sum);
    if (also.defined()) add_into(sum, also);
    co_return sum;
  }
  const Tensor y = Tensor::empty(shape, w_NK.dtype(), w_NK.device());
  if (products_ == Products::fp8) {
    if (also.defined()) copy_into(y, also);
    weight.multiply(y, x, also.defined() ? Into::add : Into::replace);
    co_await bias_into(y);
    co_return y;
  }
  if (!b_) {
    linear_into(y, x.x_MK, w_NK, {}, also);
    co_return y;
  }
  const Lease b = co_await b_->use();
  linear_into(y, x.x_MK, w_NK, b.value(), also);
  co_return y;
}

Task<> Linear::bias_into(Tensor y) {
  if (!b_) co_return;
  const Lease b = co_await b_->use();
  add_bias_into(y, b.value());
}

void Linear::defer_gradients(LinearGradient dy, const Tensor& dy_stream, LinearRows x, Tape& tape) {
  const Tensor dy_of_bias = b_ ? dy_stream : Tensor();
  tape.defer([this, dy = std::move(dy), dy_of_bias, x = std::move(x)] {
    const auto [dw, into] = w_.grad_sum();
    linear_gradient_into(matrix(dw), dy, x, products_, into);
    if (b_) bias_backward_into(b_->grad(), dy_of_bias);
  });
}

Task<Tensor> Linear::backward(Tensor dy, LinearRows x, Tape& tape, Tensor sum) {
  if (cut_ == Cut::inputs) {
    const auto multiply = [](const Tensor& dx, RowRun, const LinearGradient& dy_rows, const LinearWeight& w) {
      w.multiply(dx, dy_rows, Into::replace);
    };
    co_return co_await backward_of_cut(std::move(dy), std::move(x), tape, multiply);
  }
  const LinearGradient products = gradient(dy);
  defer_gradients(products, dy, std::move(x), tape);
  const Lease w = co_await w_.use();
  const LinearWeight weight = LinearWeight::backward(matrix(w.value()), products_);
  const bool adds = sum.defined();
  if (!adds) sum = Tensor::empty({dy.rows(), weight.w_NK().dim(1)}, dy.dtype(), dy.device());
  weight.multiply(sum, products, adds ? Into::add : Into::replace);
  co_return sum;
}

Task<Tensor> Linear::backward_gelu(Tensor dy, Tensor h, LinearRows x, Gelu kind, Tape& tape) {
  PHX_CHECK(cut_ == Cut::inputs, "{}: a GELU before features that are not cut", w_.name());
  const auto multiply = [this, h = std::move(h), kind](const Tensor& dh, RowRun rows,
                                                       const LinearGradient& dy_rows, const LinearWeight& w) {
    const Tensor h_rows = h.slice(rows.begin, rows.end);
    if (products_ == Products::same) {
      return matmul_gelu_backward_into(dh, dy_rows.dy_MN, w.w_NK(), h_rows, kind);
    }
    w.multiply(dh, dy_rows, Into::replace);
    gelu_backward_into(dh, dh, h_rows, kind);
  };
  co_return co_await backward_of_cut(std::move(dy), std::move(x), tape, multiply);
}

// multiply(dx's rows, which they are, dy's rows, w).
template <class Multiply>
Task<Tensor> Linear::backward_of_cut(Tensor dy, LinearRows x, Tape& tape, Multiply multiply) {
  GatherChunks rows = tensor_.gather_chunks(dy);
  const Lease w = co_await w_.use();
  const LinearWeight weight = LinearWeight::backward(matrix(w.value()), products_);
  const Shape shape = {rows.rows(), weight.w_NK().dim(1)};
  if (!tensor_.overlaps()) {  // x goes before its gradient comes
    const Tensor all = co_await rows.rest();
    const LinearGradient products = gradient(all);
    defer_gradients(products, dy, std::move(x), tape);
    const Tensor dx = Tensor::empty(shape, all.dtype(), all.device());
    multiply(dx, RowRun{0, all.rows()}, products, weight);
    co_return dx;
  }
  const Tensor dx = Tensor::empty(shape, dy.dtype(), dy.device());
  const auto multiply_chunk = [&](RowRun run, const Tensor& chunk) {
    multiply(dx.slice(run.begin, run.end), run, LinearGradient{chunk}, weight);
  };
  co_await each_chunk(&rows, multiply_chunk);
  const Tensor all = co_await rows.rest();
  defer_gradients({all}, dy, std::move(x), tape);
  co_return dx;
}

template <size_t N>
LinearRows GatheredLinears<N>::rows(Tensor x) const {
  const bool travels = tensor_.sequence() || tensor_.overlaps();
  if (products_ == Products::fp8 && !travels) return fp8_input(x);
  return {std::move(x)};
}

template <size_t N>
GatherChunks GatheredLinears<N>::gather(const LinearRows& x) const {
  return tensor_.gather_chunks(x.x_MK.defined() ? x.x_MK : x.fp8.q_RK);
}

template <size_t N>
Task<typename GatheredLinears<N>::Weights> GatheredLinears<N>::weights(Direction direction) {
  Weights all;
  for (size_t i = 0; i < N; ++i) {
    Lease lease = co_await linears_[i].w_.use();
    const Tensor w = matrix(lease.value());
    all.matrices[i] = w;
    all.products.push_back(direction == Direction::forward ? LinearWeight::forward(w, products_)
                                                           : LinearWeight::backward(w, products_));
    all.leases.push_back(std::move(lease));
    if (!linears_[i].b_) continue;
    Lease bias = co_await linears_[i].b_->use();
    all.biases[i] = bias.value();
    all.leases.push_back(std::move(bias));
  }
  co_return all;
}

template <size_t N>
Task<std::array<Tensor, N>> GatheredLinears<N>::forward(LinearRows x, RowNorm norm) {
  PHX_CHECK(!norm.w_K.defined() || norms(), "rows in FP8 are normed before");
  GatherChunks rows = gather(x);
  const Weights w = co_await weights(Direction::forward);
  std::array<Tensor, N> y;
  for (size_t i = 0; i < N; ++i) {
    const Tensor& matrix_i = w.matrices[i];
    y[i] = Tensor::empty({rows.rows(), matrix_i.rows()}, matrix_i.dtype(), matrix_i.device());
  }
  if (products_ == Products::same) {
    co_await linear_gathered(&rows, std::move(norm), w.matrices, w.biases, y);
    co_return y;
  }
  const auto multiply = [&](RowRun run, const Tensor& chunk) {
    const LinearRows x_rows = rows_of(x, chunk);
    for (size_t i = 0; i < N; ++i) {
      const Tensor y_rows = y[i].slice(run.begin, run.end);
      w.products[i].multiply(y_rows, x_rows, Into::replace);
      if (w.biases[i].defined()) add_bias_into(y_rows, w.biases[i]);
    }
  };
  co_await each_chunk(&rows, multiply);
  co_return y;
}

template <size_t N>
Task<GeluRows> GatheredLinears<N>::forward_gelu(LinearRows x, Gelu kind) requires(N == 1) {
  if (products_ == Products::fp8) {
    const auto [h] = co_await forward(std::move(x));
    GeluRows out = {h, gelu(h, kind)};
    co_return out;
  }
  GatherChunks rows = gather(x);
  const Weights w = co_await weights(Direction::forward);
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
Task<Tensor> GatheredLinears<N>::forward_swiglu(LinearRows x, RowNorm norm) requires(N == 1) {
  if (products_ == Products::fp8) {
    const auto [h] = co_await forward(std::move(x), std::move(norm));
    co_return swiglu(all_rows(h)).data;
  }
  GatherChunks rows = gather(x);
  const Weights w = co_await weights(Direction::forward);
  const Tensor all = co_await rows.rest();
  co_return linear_swiglu(all, w.matrices[0], w.biases[0], norm);
}

template <size_t N>
Task<Tensor> GatheredLinears<N>::backward(std::array<Tensor, N> dy, LinearRows x, Tape& tape) {
  GatherChunks rows = gather(x);
  const Weights w = co_await weights(Direction::backward);
  std::array<LinearGradient, N> products;
  for (size_t i = 0; i < N; ++i) products[i] = linears_[i].gradient(dy[i]);
  if (!tensor_.overlaps()) {
    const Tensor all = co_await rows.rest();
    defer_gradients(products, dy, rows_of(std::exchange(x, {}), all), tape);
  }
  ReduceChunks dx = tensor_.reduce_chunks({rows.rows(), w.matrices[0].dim(1)}, w.matrices[0]);
  multiply_and_send(dx, [&](const Tensor& part, RowRun run) {
    for (size_t i = 0; i < N; ++i) {
      const LinearGradient dy_rows = products[i].slice(run.begin, run.end);
      w.products[i].multiply(part, dy_rows, i == 0 ? Into::replace : Into::add);
    }
  });
  if (tensor_.overlaps()) {  // the weights' gradients while dx travels
    const Tensor all = co_await rows.rest();
    defer_gradients(products, dy, {all}, tape);
  }
  co_return co_await dx.sum();
}

template <size_t N>
void GatheredLinears<N>::defer_gradients(const std::array<LinearGradient, N>& products,
                                         const std::array<Tensor, N>& dy, const LinearRows& all, Tape& tape) {
  for (size_t i = 0; i < N; ++i) linears_[i].defer_gradients(products[i], dy[i], all, tape);
}

template class GatheredLinears<1>;
template class GatheredLinears<3>;

}  // namespace phalanx
