// A mixture-of-experts layer: router, dispatch, experts, combine; shared experts beside them.
#pragma once

#include <memory>
#include <vector>

#include "phalanx/ep/buffer.h"
#include "phalanx/model/mlp.h"
#include "phalanx/ops/permute.h"
#include "phalanx/ops/route.h"

namespace phalanx {

/// What one MoE layer saw in training on this rank since it was last cleared.
struct MoeStatistics {
  std::vector<int64_t> expert_tokens;  // by global expert: how often this rank's tokens chose it
  double balance_loss_sum = 0;         // without its coefficient
};

/// Scores, top-k, weights of this rank's own rows; adds the balance loss's gradient. Parameter NAME.w [E, D].
class Router {
 public:
  Router(const Builder& build, const std::string& name);
  Task<Routing> forward(Tensor x_TD, Pass pass, Tape& tape);
  Task<Tensor> backward(Tensor dweights_TK, Pass pass, Tape& tape);
  MoeStatistics& statistics() { return statistics_; }

 private:
  // Of the sequences' parts in this rank's own rows.
  Tensor own_offsets(const Batch& batch) const {
    return tensor_.own_offsets(context_.own_offsets(batch.sequence_offsets));
  }

  TensorParallel& tensor_;
  ContextParallel& context_;
  Group& sharers_;  // of the rows of a sequence: ranks of cp and tp
  RoutingConfig config_;
  double balance_loss_;
  Parameter& w_;
  MoeStatistics statistics_;
};

/// SwiGLU experts, cut over ep, and each one's hidden width over etp. Parameters NAME.gate_up [E, 2, F, D]
/// (gate first), NAME.down [E, D, F].
class Experts {
 public:
  Experts(const Builder& build, const std::string& name);
  /// x: rows in expert order, cut by offsets i64 [E_local+1]. Gives the part that this rank's slice adds to
  /// the sum over etp.
  Task<Rows> forward(Rows x, Tensor offsets, Tape& tape);
  Task<Rows> backward(Rows dy, Tensor offsets, Tape& tape);

 private:
  Parameter& gate_up_;
  Parameter& down_;
};

/// Ranks of tp share out the rows of the stream, each routes its own.
class Moe final : public Layer {
 public:
  Moe(const Builder& build, const std::string& name);
  Task<Tensor> forward(Tensor x_TD, Pass pass, Tape& tape) override;
  Task<Tensor> backward(Tensor dy_TD, Pass pass, Tape& tape) override;
  MoeStatistics& statistics() { return router_.statistics(); }

 private:
  Task<Tensor> routed_forward(Tensor x_TD, Pass pass, Tape& tape);
  Task<Tensor> routed_backward(Tensor dy_TD, Pass pass, Tape& tape);

  TensorParallel& tensor_;
  Router router_;
  Experts experts_;
  ep::Buffer buffer_;
  std::unique_ptr<SwigluMlp> shared_;  // or null
};

}  // namespace phalanx
