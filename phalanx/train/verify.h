// Proving that layouts agree: the same steps under every layout, compared with one rank parameter by
// parameter.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "phalanx/comm/mesh.h"
#include "phalanx/model/layer.h"
#include "phalanx/parallel/parameter_store.h"
#include "phalanx/tensor/dtype.h"

namespace phalanx {

struct VerifyCase {
  Layout layout;
  std::string schedule = "sequential";
  bool sequence = false;  ///< sequence parallelism over tp
  Zero zero = Zero::none;
  int shard = 0;    ///< ranks that share one copy of the state; 0: all
  int ulysses = 0;  ///< ranks of cp that exchange heads (model/config.h)
  Recompute recompute = Recompute::none;
  int slices = 1;           ///< of a microbatch, along its sequences
  bool tp_overlap = false;  ///< products next to tp's communication in chunks
};

struct VerifyOptions {
  ModelConfig model;  ///< resolved
  Device::Kind device = Device::Kind::cpu;
  std::optional<Device::Kind> reference = {};  ///< where the one rank computes; none: on `device` too
  DType dtype = DType::f64;
  bool documents = false;              ///< sequences hold several, of random lengths
  Products products = Products::same;  ///< of linear layers, the one rank's too
  bool narrow = false;                 ///< weights kept in bf16, one rank's too; GPUs then compute in bf16
  int64_t sequences =
      0;  ///< in a microbatch of the whole job; 0: the fewest that every case's dp ranks divide
  int microbatches = 4;
  uint64_t seed = 0;
  double tolerance = 0;  ///< largest gradient error that passes; 0: 1e-12 in f64, 1e-5 in f32, 2e-2 in bf16;
                         ///< in FP8 5e-2, with bf16 8e-2
};

/// The error of a gradient g against one rank's g0 is ‖g − g0‖ / max(‖g0‖, 1e-6 · ‖all g0‖); of a bias of
/// keys that nothing turns, which is 0 but for rounding, ‖g − g0‖ / ‖all g0‖, and its weights are not
/// compared.
struct VerifyRow {
  VerifyCase run;
  double max_rel_grad_err = 0;
  std::string worst_tensor;
  /// Of the gradients that are wrong, the nearest to the loss: where backward first went astray; empty: none
  /// is.
  std::string first_tensor;
  double loss_err = 0;       ///< relative
  double grad_norm_err = 0;  ///< relative
  double weights_err = 0;    ///< the same error of the weights after three steps: AdamW in f64, SGD in f32
  /// f32, bf16: tokens, over layers and steps, for which one rank's choice of experts was closer than 1e-5
  /// (in bf16 2e-2), the case's another, and one rank's was replayed.
  int64_t replayed = 0;
  double seconds = 0;
  bool pass = false;
  std::string error;  ///< what the run threw; empty if nothing
};

enum class Coverage : uint8_t {
  pairs,  ///< every layout, and any two settings (axes' sizes, schedule, ZeRO, …) in some case together
  exhaustive,  ///< every layout with everything
};
/// Cases of the layouts: every schedule that runs on pp, sequence parallelism over tp or not, overlapped
/// or not, each stage of ZeRO.
std::vector<VerifyCase> verify_cases(const ModelConfig& model, const std::vector<Layout>& layouts,
                                     Coverage coverage);

/// Runs every case on thread ranks, with random tokens and weights of `seed`; `on_row` sees each row as it
/// ends.
std::vector<VerifyRow> verify(const VerifyOptions& options, const std::vector<VerifyCase>& cases,
                              const std::function<void(const VerifyRow&)>& on_row);

}  // namespace phalanx
