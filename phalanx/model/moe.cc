#include "phalanx/model/moe.h"

#include <cmath>
#include <numeric>

#include "phalanx/ops/cast.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/swiglu.h"

namespace phalanx {

// T tokens, D model width, E experts, K top-k, R received rows, F expert width (a slice of it under etp)

namespace {

// Gate and up of each expert as one matrix, [E, 2F, D].
Tensor stacked(const Tensor& gate_up) {
  return gate_up.view({gate_up.dim(0), gate_up.dim(1) * gate_up.dim(2), gate_up.dim(3)});
}

// The ranks of a stage with the same dp coordinate.
Group& ranks_of_a_sequence(Mesh& mesh) {
  const int count = mesh.size(Axis::cp) * mesh.size(Axis::tp);
  std::vector<int> members(static_cast<size_t>(count));
  std::iota(members.begin(), members.end(), mesh.world().rank() / count * count);
  return mesh.group("cp.tp", members);
}

// Adds a slice's counts to those of the slices before it.
void count(Tensor& sum_BE, const Tensor& counts_BE) {
  if (!sum_BE.defined()) {
    sum_BE = Tensor::zeros(counts_BE.shape(), counts_BE.dtype(), counts_BE.device());
  }
  add_into(sum_BE, counts_BE);
}

// A gradient of logits, which are f32 beside rows of bf16, in the rows' dtype.
Tensor as_rows(const Tensor& dlogits_TE, DType dtype) {
  if (dlogits_TE.dtype() == dtype) return dlogits_TE;
  Tensor narrow = Tensor::empty(dlogits_TE.shape(), dtype, dlogits_TE.device());
  narrow_into(narrow, dlogits_TE);
  return narrow;
}

}  // namespace

Router::Router(const Builder& b, const std::string& name, int layer)
    : name_(name),
      layer_(layer),
      tensor_(b.tensor),
      context_(b.context),
      sharers_(ranks_of_a_sequence(b.store.mesh())),
      config_{.scores = b.config.moe.scores,
              .top_k = b.config.moe.top_k,
              .normalise = b.config.moe.normalise,
              .scaling = b.config.moe.scaling,
              .groups = b.config.moe.groups,
              .top_groups = b.config.moe.top_groups},
      moe_(b.config.moe),
      w_(b.store.add({.name = name + ".w",
                      .shape = {b.config.moe.experts, b.config.width},
                      .init = {.std = b.config.init_std},
                      .gradient = OverTp::parts})),
      bias_E_(b.store.add_state(name + ".bias", {b.config.moe.experts})),
      step_tokens_(static_cast<size_t>(b.config.moe.experts)) {
  statistics_.expert_tokens.resize(static_cast<size_t>(b.config.moe.experts));
}

Task<Routing> Router::forward(Tensor x_TD, Pass pass, Tape& tape) {
  const Lease w = co_await w_.use();
  const Tensor logits_TE = router_logits(tape.save(x_TD), w.value());
  if (moe_.z_loss != 0) {
    const Tensor lse_T = tape.save(log_sum_exp(tape.save(logits_TE)));
    if (pass.training && !pass.again) accumulate(statistics_.z_loss_sum, z_loss(lse_T));
  }
  Routing routing = tape.save(route(logits_TE, config_, bias_E_));
  if (pass.watch) show(routing, pass);
  if (pass.training || moe_.balance_loss != 0) {
    const Tensor offsets = own_offsets(*pass.batch);
    Tensor counts_BE = tape.save(balance_counts(routing, offsets));
    if (pass.training && !pass.again) record(counts_BE);
    if (sharers_.size() > 1) {
      Work work = sharers_.all_reduce(counts_BE);
      co_await work;
    }
    if (pass.history) {
      if (!pass.again) count(history(pass).counts_BE, counts_BE);
    } else if (pass.training && !pass.again) {
      accumulate(statistics_.balance_loss_sum, balance_loss(routing, offsets, counts_BE));
    }
  }
  if (moe_.capacity == 0 || pass.cache) co_return routing;
  routing.topk_idx_TK = co_await within_capacity(routing.topk_idx_TK, pass);
  co_return routing;
}

ExpertRoom Router::room(const Pass& pass) {
  ExpertRoom room = {.experts = moe_.experts, .factor = moe_.capacity};
  if (!pass.history) return room;
  const auto slice = static_cast<size_t>(pass.batch->slice);
  std::vector<Tensor>& taken_BE = history(pass).taken_BE;
  taken_BE.resize(std::max(taken_BE.size(), slice + 1));
  const Shape shape = {pass.batch->whole_offsets.numel() - 1, moe_.experts};
  taken_BE[slice] = Tensor::zeros(shape, DType::i64, bias_E_.device());
  if (slice > 0) copy_into(taken_BE[slice], taken_BE[slice - 1]);
  room.whole_offsets = pass.batch->whole_offsets;
  room.taken_BE = taken_BE[slice];
  return room;
}

// Every rank that shares a sequence decides for all its rows, and keeps its own.
Task<Tensor> Router::within_capacity(Tensor topk_idx_TK, Pass pass) {
  Tensor numbers_T = tensor_.own_rows(pass.batch->rows);
  Tensor all_TK = topk_idx_TK;
  if (sharers_.size() > 1) {
    Work gather_numbers = sharers_.all_gather(numbers_T);
    Work gather_choices = sharers_.all_gather(topk_idx_TK);
    numbers_T = co_await gather_numbers;
    all_TK = co_await gather_choices;
  }
  const ExpertRoom left = room(pass);
  const Tensor kept_TK = phalanx::within_capacity(all_TK, numbers_T, pass.batch->sequence_offsets, left);
  const int64_t own = topk_idx_TK.rows();
  co_return kept_TK.slice(sharers_.rank() * own, (sharers_.rank() + 1) * own);
}

void Router::show(const Routing& routing, const Pass& pass) const {
  const Tensor numbers_T = tensor_.own_rows(pass.batch->rows).to(kCpu);
  const Routing here = {routing.topk_idx_TK.to(kCpu), routing.weights_TK.to(kCpu),
                        routing.scores_TE.to(kCpu)};
  pass.watch->routed({name_, pass.step, pass.again, numbers_T, config_, bias_E_.to(kCpu), here});
  if (!routing.topk_idx_TK.on_cuda()) return;  // it was written in place
  copy_into(routing.topk_idx_TK, here.topk_idx_TK);
  copy_into(routing.weights_TK, here.weights_TK);
}

void Router::record(const Tensor& counts_BE) {
  counted_BE_.push_back(Tensor::empty(counts_BE.shape(), counts_BE.dtype(), counts_BE.device()));
  copy_into(counted_BE_.back(), counts_BE);
  if (!counts_BE.on_cuda()) settle();
}

void Router::settle() {
  for (const Tensor& counted : counted_BE_) {
    const Tensor counts_BE = counted.to(kCpu);
    const auto counts = counts_BE.span<const double>();
    for (size_t i = 0; i < counts.size(); ++i) {
      const size_t e = i % step_tokens_.size();
      statistics_.expert_tokens[e] += static_cast<int64_t>(counts[i]);
      step_tokens_[e] += static_cast<int64_t>(counts[i]);
    }
  }
  counted_BE_.clear();
}

void Router::update_bias(std::span<const int64_t> tokens) {
  const int64_t all = std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
  const Tensor here_E = bias_E_.to(kCpu);
  visit_float(here_E.dtype(), [&](auto t) {
    using T = decltype(t);
    const auto bias = here_E.span<T>();
    for (size_t e = 0; e < bias.size(); ++e) {
      const int64_t missing = all - tokens[e] * std::ssize(tokens);  // to the mean, times E
      const int sign = missing > 0 ? 1 : missing < 0 ? -1 : 0;
      bias[e] += static_cast<T>(sign * moe_.bias_rate);
    }
  });
  if (bias_E_.on_cuda()) copy_into(bias_E_, here_E);
}

void start_step(std::span<Moe* const> layers) {
  for (Moe* moe : layers) std::ranges::fill(moe->router().step_tokens(), 0);
}

Task<Tensor> sum_step_tokens(std::span<Moe* const> layers, Group* holders) {
  if (layers.empty()) co_return Tensor();
  const auto experts = static_cast<int64_t>(layers.front()->router().step_tokens().size());
  const Tensor tokens_LE = Tensor::empty({std::ssize(layers), experts}, DType::i64);
  const auto all = tokens_LE.span<int64_t>();
  for (size_t i = 0; i < layers.size(); ++i) {
    std::ranges::copy(layers[i]->router().step_tokens(), all.begin() + static_cast<int64_t>(i) * experts);
  }
  if (holders) {
    Work work = holders->all_reduce(tokens_LE);
    co_await work;
  }
  co_return tokens_LE;
}

void update_biases(std::span<Moe* const> layers, const Tensor& tokens_LE) {
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto layer = static_cast<int64_t>(i);
    layers[i]->router().update_bias(tokens_LE.slice(layer, layer + 1).span<int64_t>());
  }
}

Task<Tensor> Router::backward(Tensor dweights_TK, Pass pass, Tape& tape) {
  Tensor counts_BE = pass.training || moe_.balance_loss != 0 ? tape.take() : Tensor();
  const auto routing = tape.take<Routing>();
  Tensor dscores_TE;
  Tensor offsets;
  if (pass.history || moe_.balance_loss != 0) offsets = own_offsets(*pass.batch);
  if (pass.history) {  // only now all slices are counted
    counts_BE = history(pass).counts_BE;
    accumulate(statistics_.balance_loss_sum, balance_loss(routing, offsets, counts_BE));
  }
  if (moe_.balance_loss != 0) {
    dscores_TE = balance_loss_backward(routing, offsets, counts_BE, moe_.balance_loss * pass.scale);
  }
  const Tensor wide_TE = route_backward(dweights_TK, dscores_TE, routing, config_);
  if (moe_.z_loss != 0) {
    const Tensor lse_T = tape.take();
    z_loss_backward_into(wide_TE, tape.take(), lse_T, moe_.z_loss * pass.scale);
  }
  const Tensor x = tape.take();
  const Tensor dlogits_TE = as_rows(wide_TE, x.dtype());
  tape.defer([this, dlogits_TE, x_TD = x] {
    const auto [dw, into] = w_.grad_sum();
    matmul_tn_into(dw, dlogits_TE, x_TD, into);
  });
  const Lease w = co_await w_.use();
  co_return matmul(dlogits_TE, w.value());
}

Experts::Experts(const Builder& b, const std::string& name)
    : products_(b.store.products()),
      gate_up_(b.store.add({.name = name + ".gate_up",
                            .shape = {b.config.moe.experts, 2, b.config.moe.expert_width, b.config.width},
                            .placement = {{.axis = Axis::ep, .dim = 0}, {.axis = Axis::etp, .dim = 2}},
                            .init = {.std = b.config.init_std},
                            .gradient = OverTp::parts,
                            .rows_move = b.config.moe.exact_sums})),
      down_(b.store.add({.name = name + ".down",
                         .shape = {b.config.moe.experts, b.config.width, b.config.moe.expert_width},
                         .placement = {{.axis = Axis::ep, .dim = 0}, {.axis = Axis::etp, .dim = 2}},
                         .init = {.std = b.config.init_std / std::sqrt(2.0 * b.config.layers)},
                         .gradient = OverTp::parts,
                         .rows_move = b.config.moe.exact_sums})) {
  if (products_ == Products::same) return;
  const int parts = b.store.mesh().size(Axis::etp);
  const int64_t multiple = parts > 1 ? kScaleGroup : kTermPad;
  const int64_t own = b.config.moe.expert_width / parts;
  if (own % multiple != 0 || b.config.width % kTermPad != 0) {
    throw Error(
        "{}: products in FP8 want a width of a multiple of {} and an expert width of {} on each rank, "
        "not {} and {}",
        name, kTermPad, multiple, b.config.width, own);
  }
}

Task<Rows> Experts::forward(Rows x_RD, ExpertOrder order, Tensor weights_RK, Tape& tape) {
  const Lease gate_up = co_await gate_up_.use();
  const Lease down = co_await down_.use();
  const ExpertWeight to_h = ExpertWeight::forward(stacked(gate_up.value()), products_);
  const Rows h = tape.save(to_h.multiply(permute(x_RD, order), order.offsets));
  tape.save(x_RD);
  tape.save(order);
  tape.save(weights_RK);
  const Rows y = ExpertWeight::forward(down.value(), products_).multiply(swiglu(h), order.offsets);
  co_return unpermute(y, order, weights_RK, x_RD);
}

Task<ExpertGradients> Experts::backward(Rows dy_RD, Tape& tape) {
  const Lease gate_up = co_await gate_up_.use();
  const Lease down = co_await down_.use();
  const Tensor weights_RK = tape.take();
  const auto order = tape.take<ExpertOrder>();
  Rows x_RD = tape.take<Rows>();
  // Of slots before their weights.
  ExpertRowsGradient dy = expert_gradient(permute(dy_RD, order), order.offsets, products_);
  const Rows da = ExpertWeight::backward(down.value(), products_).multiply(dy, order.offsets);
  WeightedSwigluGradients d = weighted_swiglu_backward(da, tape.take<Rows>(), order, weights_RK);
  tape.defer([this, dy = std::move(dy), a = std::move(d.weighted_CF), order] {
    const auto [dw, into] = down_.grad_sum();
    expert_gradient_into(dw, dy, a, order.offsets, products_, into);
  });
  const ExpertRowsGradient dh = expert_gradient(std::move(d.gate_up), order.offsets, products_);
  tape.defer([this, dh, x_RD = std::move(x_RD), order] {
    const auto [dw, into] = gate_up_.grad_sum();
    expert_gradient_into(stacked(dw), dh, permute(x_RD, order), order.offsets, products_, into);
  });
  const ExpertWeight from_h = ExpertWeight::backward(stacked(gate_up.value()), products_);
  const Rows dx = from_h.multiply(dh, order.offsets);
  const ExpertGradients out = {unpermute(dx, order, Tensor(), dy_RD), d.weights_RK};
  co_return out;
}

Moe::Moe(const Builder& b, const std::string& name, const std::string& experts, int layer)
    : tensor_(b.tensor),
      router_(b, name + ".router", layer),
      experts_(b, experts),
      buffer_(b.store.mesh().group(Axis::ep), b.config.moe.experts,
              ep::BufferOptions{.etp = &b.store.mesh().group(Axis::etp),
                                .phase = ep::Phase::prefill,
                                .ranks_of_node = b.config.moe.two_level ? ep::kFindNodes : 0}),
      gathering_(b.store.mesh().group(Axis::ep), b.store.mesh().group(Axis::etp), b.config.moe.experts),
      gathers_(b.store.device().is_cuda()),
      exact_sums_(b.config.moe.exact_sums),
      shared_(b.config.moe.shared_experts == 0
                  ? nullptr
                  : std::make_unique<SwigluMlp>(b, name + ".shared",
                                                b.config.moe.shared_experts * b.config.moe.expert_width)) {}

// The shared experts compute while the routed rows travel.
Task<Tensor> Moe::forward(Tensor x_TD, Tensor residual_TD, Pass pass, Tape& tape) {
  Task<Tensor> routed = routed_forward(x_TD, pass, tape.scope("routed"));
  if (!shared_) {
    const Tensor y_TD = co_await routed;
    if (residual_TD.defined()) add_into(y_TD, residual_TD);
    co_return y_TD;
  }
  Task<Tensor> shared = shared_->forward(x_TD, std::move(residual_TD), pass, tape.scope("shared"));
  const auto [routed_TD, shared_TD] = co_await overlap(std::move(routed), std::move(shared));
  co_return add(routed_TD, shared_TD);
}

Task<Tensor> Moe::backward(Tensor dy_TD, Pass pass, Tape& tape) {
  Task<Tensor> routed = routed_backward(dy_TD, pass, tape.scope("routed"));
  if (!shared_) co_return co_await routed;
  Task<Tensor> shared = shared_->backward(dy_TD, pass, tape.scope("shared"));
  const auto [routed_TD, shared_TD] = co_await overlap(std::move(routed), std::move(shared));
  co_return add(routed_TD, shared_TD);
}

Task<Tensor> Moe::routed_forward(Tensor stream_TD, Pass pass, Tape& tape) {
  const Tensor x_TD = tensor_.split(stream_TD);
  const Routing route = co_await router_.forward(x_TD, pass, tape.scope("router"));
  if (gathers_) co_return co_await gathered_forward(x_TD, route, tape);
  ep::Tokens tokens = {x_TD, route.topk_idx_TK, route.weights_TK};
  ep::DispatchOptions options;
  if (exact_sums_) options.order = ep::PairOrder::every_slot;
  const ep::Dispatched in = co_await buffer_.dispatch(std::move(tokens), options);
  const ExpertOrder order = order_by_expert(in.topk_idx_RK, buffer_.local_experts());
  const Rows y_RD = co_await experts_.forward(in.x_RD, order, in.weights_RK, tape.scope("experts"));
  const ep::Combined out = co_await buffer_.combine(y_RD, in.handle, Tensor());
  tape.save(in.handle);
  co_return co_await tensor_.join(out.x_TD);
}

// The backward of combine is a dispatch of the same rows, and the backward of dispatch a combine.
Task<Tensor> Moe::routed_backward(Tensor dstream_TD, Pass pass, Tape& tape) {
  const Tensor dy_TD = tensor_.split(dstream_TD);
  if (gathers_) co_return co_await gathered_backward(dy_TD, pass, tape);
  const auto handle = tape.take<ep::Handle>();
  const Rows dy_RD = co_await buffer_.dispatch(dy_TD, handle);
  const ExpertGradients d = co_await experts_.backward(dy_RD, tape.scope("experts"));
  const ep::Combined back = co_await buffer_.combine(d.x_RD, handle, d.weights_RK);
  const Tensor dx_router = co_await router_.backward(back.weights_TK, pass, tape.scope("router"));
  const Tensor dx_TD = add(back.x_TD, dx_router);
  co_return co_await tensor_.join(dx_TD);
}

Task<Tensor> Moe::gathered_forward(Tensor x_TD, Routing route, Tape& tape) {
  const ep::Gathered in = co_await gathering_.dispatch(x_TD, route.topk_idx_TK, route.weights_TK);
  const ExpertOrder order = order_by_expert(in.topk_idx_RK, gathering_.local_experts());
  const Rows y_RD = co_await experts_.forward(in.x_RD, order, in.weights_RK, tape.scope("experts"));
  const Tensor y_TD = co_await gathering_.sum(y_RD.data);
  co_return co_await tensor_.join(y_TD);
}

Task<Tensor> Moe::gathered_backward(Tensor dy_TD, Pass pass, Tape& tape) {
  const Tensor gathered_RD = co_await gathering_.gather(std::move(dy_TD));
  const Rows dy_RD = all_rows(gathered_RD);
  const ExpertGradients d = co_await experts_.backward(dy_RD, tape.scope("experts"));
  const Tensor dweights_TK = co_await gathering_.sum(d.weights_RK);
  const Tensor dx_TD = co_await gathering_.sum(d.x_RD.data);
  const Tensor dx_router = co_await router_.backward(dweights_TK, pass, tape.scope("router"));
  const Tensor sum_TD = add(dx_TD, dx_router);
  co_return co_await tensor_.join(sum_TD);
}

}  // namespace phalanx
