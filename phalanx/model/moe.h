// A mixture-of-experts layer: router, dispatch, experts, combine; shared experts beside them.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "phalanx/ep/buffer.h"
#include "phalanx/ep/gathering.h"
#include "phalanx/model/mlp.h"
#include "phalanx/ops/expert_products.h"
#include "phalanx/ops/permute.h"
#include "phalanx/ops/route.h"

namespace phalanx {

/// What one MoE layer saw in training on this rank since it was last cleared.
struct MoeStatistics {
  std::vector<int64_t> expert_tokens;  // by global expert: how often this rank's tokens chose it
  Tensor balance_loss_sum;             // f64 [1], without their coefficients; undefined: nothing yet
  Tensor z_loss_sum;
};

/// Scores, top-k, weights of this rank's own rows; adds the gradients of the balance loss and the z-loss.
/// Parameter NAME.w [E, D], state NAME.bias [E].
class Router {
 public:
  Router(const Builder& build, const std::string& name, int layer);
  /// topk_idx is −1 where an expert has no room for the token.
  Task<Routing> forward(Tensor x_TD, Pass pass, Tape& tape);
  Task<Tensor> backward(Tensor dweights_TK, Pass pass, Tape& tape);
  /// Of a GPU the host waits for what it counted.
  MoeStatistics& statistics() {
    settle();
    return statistics_;
  }
  /// By global expert: how often this rank's tokens chose it in the training step that runs.
  std::vector<int64_t>& step_tokens() {
    settle();
    return step_tokens_;
  }
  /// Moves the bias by moe.bias_rate; `tokens` are those of all ranks.
  void update_bias(std::span<const int64_t> tokens);

 private:
  // The choices that experts have room for, in whole sequences.
  Task<Tensor> within_capacity(Tensor topk_idx_TK, Pass pass);
  // That room: of a slice, what those before it have left.
  ExpertRoom room(const Pass& pass);
  // Adds choices to the statistics: f64 [B, E] as balance_counts gives them, of this rank's rows.
  void record(const Tensor& counts_BE);
  void settle();
  // Shows a choice to who watches, who may write another one.
  void show(const Routing& routing, const Pass& pass) const;
  // Of a slice: what its microbatch's share.
  RouterHistory& history(const Pass& pass) const { return pass.history->layer(layer_).router; }
  // Of the sequences' parts in this rank's own rows.
  Tensor own_offsets(const Batch& batch) const {
    return tensor_.own_offsets(context_.own_offsets(batch.sequence_offsets));
  }

  std::string name_;
  int layer_;
  TensorParallel& tensor_;
  ContextParallel& context_;
  Group& sharers_;  // of the rows of a sequence: ranks of cp and tp
  RoutingConfig config_;
  MoeConfig moe_;
  Parameter& w_;
  Tensor bias_E_;
  MoeStatistics statistics_;
  std::vector<int64_t> step_tokens_;
  std::vector<Tensor> counted_BE_;  // by a GPU, not in the statistics yet
};

/// Of what the experts of a rank gave: for their rows, and for the weights of slots.
struct ExpertGradients {
  Rows x_RD;
  Tensor weights_RK;
};

/// SwiGLU experts, cut over ep, and each one's hidden width over etp. Parameters NAME.gate_up [E, 2, F, D]
/// (gate first), NAME.down [E, D, F], which layers of one NAME share.
///
/// Backward of y[r] = Σ_k w·down·a, a = swiglu(h), needs no rows of the output: a weight's gradient
/// ⟨dy[r], down·a⟩ is ⟨downᵀ·dy[r], a⟩. Nor a, which is made again where h is read, nor x in expert order.
class Experts {
 public:
  Experts(const Builder& build, const std::string& name);
  /// x: a row for each token; order: of its slots that name local experts. Gives the weighted sums over
  /// slots, of which a rank of etp has the part of its slice.
  Task<Rows> forward(Rows x_RD, ExpertOrder order, Tensor weights_RK, Tape& tape);
  Task<ExpertGradients> backward(Rows dy_RD, Tape& tape);
  std::array<Parameter*, 2> parameters() { return {&gate_up_, &down_}; }

 private:
  Products products_;
  Parameter& gate_up_;
  Parameter& down_;
};

/// Ranks of tp share out the rows of the stream, each routes its own.
class Moe final : public Layer {
 public:
  /// `experts` names theirs: other layers may have the same.
  Moe(const Builder& build, const std::string& name, const std::string& experts, int layer);
  Task<Tensor> forward(Tensor x_TD, Tensor residual_TD, Pass pass, Tape& tape) override;
  Task<Tensor> backward(Tensor dy_TD, Pass pass, Tape& tape) override;
  MoeStatistics& statistics() { return router_.statistics(); }
  Router& router() { return router_; }
  Experts& experts() { return experts_; }
  /// From now on this rank's experts are those that the map says; outside a step, their weights moved.
  void set_places(std::shared_ptr<const ep::ReplicaMap> map) { buffer_.set_replicas(std::move(map)); }

 private:
  Task<Tensor> routed_forward(Tensor x_TD, Pass pass, Tape& tape);
  Task<Tensor> routed_backward(Tensor dy_TD, Pass pass, Tape& tape);
  // The same on GPUs, where no host counts rows.
  Task<Tensor> gathered_forward(Tensor x_TD, Routing route, Tape& tape);
  Task<Tensor> gathered_backward(Tensor dy_TD, Pass pass, Tape& tape);

  TensorParallel& tensor_;
  Router router_;
  Experts experts_;
  ep::Buffer buffer_;
  ep::Gathering gathering_;
  bool gathers_;  // instead of dispatching by the buffer
  bool exact_sums_;
  std::unique_ptr<SwigluMlp> shared_;  // or null
};

/// Starts the count of a step's tokens.
void start_step(std::span<Moe* const> layers);
/// After a step: i64 [L, E], how often each layer's experts were chosen by all tokens of the step; collective
/// over the `holders` of the routers (ParameterStore::state_holders).
Task<Tensor> sum_step_tokens(std::span<Moe* const> layers, Group* holders);
/// Moves each router's bias by those choices, on every rank alike.
void update_biases(std::span<Moe* const> layers, const Tensor& tokens_LE);

}  // namespace phalanx
