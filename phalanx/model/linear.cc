#include "phalanx/model/linear.h"

#include "phalanx/ops/bias.h"
#include "phalanx/ops/layernorm.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/rmsnorm.h"

namespace phalanx {
namespace {

Parameter& add_vector(ParameterStore& store, const std::string& name, int64_t width, Init::Kind kind) {
  return store.add({.name = name, .shape = {width}, .init = {.kind = kind}, .weight_decay = false});
}

class RmsNorm final : public Layer {
 public:
  RmsNorm(ParameterStore& store, const std::string& name, const ModelConfig& c)
      : w_(add_vector(store, name + ".w", c.width, Init::Kind::ones)), eps_(c.norm_eps) {}

  Task<Tensor> forward(Tensor x_TD, Pass, Tape& tape) override {
    const Lease w = co_await w_.use();
    const RmsNormed out = rmsnorm(tape.save(x_TD), w.value(), eps_);
    tape.save(out.inv_rms_T);
    co_return out.y_TD;
  }

  Task<Tensor> backward(Tensor dy_TD, Pass, Tape& tape) override {
    const Lease w = co_await w_.use();
    const Tensor inv_rms_T = tape.take();
    co_return rmsnorm_backward(dy_TD, tape.take(), w.value(), inv_rms_T, w_.grad());
  }

 private:
  Parameter& w_;
  double eps_;
};

class LayerNorm final : public Layer {
 public:
  LayerNorm(ParameterStore& store, const std::string& name, const ModelConfig& c)
      : w_(add_vector(store, name + ".w", c.width, Init::Kind::ones)),
        b_(c.bias ? &add_vector(store, name + ".b", c.width, Init::Kind::zeros) : nullptr),
        eps_(c.norm_eps) {}

  Task<Tensor> forward(Tensor x_TD, Pass, Tape& tape) override {
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

  Task<Tensor> backward(Tensor dy_TD, Pass, Tape& tape) override {
    const Lease w = co_await w_.use();
    const auto kept = tape.take<LayerNormed>();
    co_return layernorm_backward(dy_TD, tape.take(), w.value(), kept, w_.grad(), b_ ? b_->grad() : Tensor());
  }

 private:
  Parameter& w_;
  Parameter* b_;
  double eps_;
};

}  // namespace

Linear::Linear(ParameterStore& store, const std::string& name, const LinearConfig& c)
    : w_(store.add({.name = name + ".w", .shape = {c.out, c.in}, .init = {.std = c.init_std}})),
      b_(c.bias ? &add_vector(store, name + ".b", c.out, Init::Kind::zeros) : nullptr) {}

Task<Tensor> Linear::forward(Tensor x, Tape& tape) {
  const Lease w = co_await w_.use();
  const Tensor y = matmul_nt(tape.save(x), w.value());
  if (b_) {
    const Lease b = co_await b_->use();
    add_bias_into(y, b.value());
  }
  co_return y;
}

Task<Tensor> Linear::backward(Tensor dy, Tape& tape, Tensor sum) {
  tape.defer([this, dy, x = tape.take()] {
    const auto [dw, into] = w_.grad_sum();
    matmul_tn_into(dw, dy, x, into);
    if (b_) bias_backward_into(b_->grad(), dy);
  });
  const Lease w = co_await w_.use();
  if (!sum.defined()) co_return matmul(dy, w.value());
  matmul_into(sum, dy, w.value());
  co_return sum;
}

std::unique_ptr<Layer> make_norm(ParameterStore& store, const std::string& name, const ModelConfig& config) {
  if (config.norm == NormKind::layernorm) return std::make_unique<LayerNorm>(store, name, config);
  return std::make_unique<RmsNorm>(store, name, config);
}

}  // namespace phalanx
