#include "phalanx/model/norm.h"

#include "phalanx/ops/layernorm.h"
#include "phalanx/ops/rmsnorm.h"

namespace phalanx {
namespace {

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

  Task<LeftNorm> leave() override {
    Lease w = co_await w_.use();
    LeftNorm left;
    left.norm = {w.value(), eps_};
    left.lease.emplace(std::move(w));
    co_return left;
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

}  // namespace

OverTp gradient_of_stream(const Builder& build) {
  return build.tensor.sequence() ? OverTp::parts : OverTp::alike;
}

Parameter& add_vector(const Builder& build, const std::string& name, int64_t width, Init::Kind kind) {
  return build.store.add({.name = name,
                          .shape = {width},
                          .init = {.kind = kind},
                          .weight_decay = false,
                          .gradient = gradient_of_stream(build)});
}

std::unique_ptr<Norm> make_rms_norm(const Builder& build, const std::string& name, int64_t width,
                                    double eps) {
  return std::make_unique<RmsNorm>(build, name, width, eps);
}

std::unique_ptr<Norm> make_norm(const Builder& build, const std::string& name) {
  if (build.config.norm == NormKind::layernorm) return std::make_unique<LayerNorm>(build, name);
  return make_rms_norm(build, name, build.config.width, build.config.norm_eps);
}

}  // namespace phalanx
