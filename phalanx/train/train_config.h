// Everything that a training run is told: one TOML file, then --set section.key=value.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "phalanx/base/config.h"
#include "phalanx/comm/launch.h"
#include "phalanx/comm/mesh.h"
#include "phalanx/model/config.h"
#include "phalanx/model/layer.h"
#include "phalanx/parallel/schedule/schedule.h"
#include "phalanx/parallel/tensor_parallel.h"
#include "phalanx/tensor/dtype.h"
#include "phalanx/train/data.h"
#include "phalanx/train/lr_schedule.h"
#include "phalanx/train/optimizer.h"

namespace phalanx {

/// How weights are kept: in the dtype of arithmetic, or in bf16 with a master copy in that (ParameterStore).
enum class KeptWeights : uint8_t { same, bf16 };

/// Section [train].
struct RunConfig {
  int64_t steps = 2000;
  int64_t batch = 12;      ///< sequences of a step, over all ranks
  int64_t microbatch = 0;  ///< sequences of one rank at a time; 0: its whole share of the batch
  uint64_t seed = 1337;    ///< of initial values, dropout and the draw of sequences
  Device::Kind device = Device::Kind::cpu;
  DType dtype = DType::f32;
  KeptWeights weights = KeptWeights::same;
  KeptWeights gradients = KeptWeights::same;
  Products products = Products::same;
  bool deterministic = true;  ///< the same bits in every run; on CPUs always
  bool blocking = false;      ///< on a GPU each op is waited for
  int64_t loss_rows = 0;      ///< of a microbatch, whose logits exist at once; 0: loss_rows_of
  std::string schedule;       ///< of microbatches (schedule_entries); "": sequential, with pp > 1 1f1b
  int slices = 1;             ///< of each microbatch, along its sequences (model/slices.h)
  Recomputation recompute;    ///< what backward runs forward again (model/layer.h)
  int64_t eval_every = 250;   ///< steps; 0: only at the end
  int64_t eval_batches = 20;  ///< of `batch` sequences; 0: the whole validation part
  int64_t save_every = 0;     ///< steps; 0: only at the end
  int64_t keep = 2;           ///< checkpoints, the newest; 0: all
  std::string out = "out";    ///< directory of checkpoints
  std::string init = "";      ///< Hugging Face directory that a new run starts from; "": drawn by seed
};

/// Section [parallel].
struct ParallelConfig {
  int ranks = 0;                 ///< 0: those of the layout
  std::string layout = "";       ///< "dp=4,ep=2"; without dp, dp takes the ranks that the others leave
  bool sequence = true;          ///< between layers each rank of tp has its own rows (sequence parallelism)
  int zero = 0;                  ///< ZeRO's stage (parallel/parameter.h)
  int shard = 0;                 ///< ranks that share out one copy of what ZeRO shares; 0: all
  int64_t rebalance_every = 0;   ///< steps between moves of experts (train/expert_places.h); 0: they stay
  int64_t rebalance_window = 0;  ///< steps whose loads count; 0: rebalance_every
  int64_t rebalance_moves = 0;   ///< the most experts that move at once, on a stage; 0: any number
  int chunks = 0;                ///< of the model on each rank of pp; 0: the schedule's own number
  std::string layers = "";       ///< of each stage of pp, "3,4,5"; "": as many on each as go round
  TransportKind transport = TransportKind::threads;
  double progress_timeout = 600;  ///< seconds in which a waiting rank must get a step further
  double liveness_timeout = 10;   ///< seconds of silence after which a process is taken for dead
  int ulysses = 0;                ///< ranks of cp that exchange heads; 0: as many as the heads allow
  bool tp_overlap = false;        ///< products in chunks, some of which travel between ranks of tp meanwhile
};

struct TrainConfig {
  ModelConfig model;  ///< sections [model] and [moe]; its vocabulary is the tokenizer's
  DataConfig data;
  RunConfig train;
  OptimizerConfig optimizer;
  LrConfig lr;      ///< in section [optimizer]
  double clip = 1;  ///< largest gradient norm, in section [optimizer]; 0: no limit
  ParallelConfig parallel;
};

/// The table of all sections, bound to `config`, which outlives it.
ConfigTable train_table(TrainConfig& config);

/// Reads the file, applies the overrides ("train.steps=10") in order, resolves and checks. Error: see
/// base/config.h and checked().
TrainConfig load_train_config(const std::string& path, std::span<const std::string> overrides);
/// The same from text, as a checkpoint carries it; `name` stands for the file in messages.
TrainConfig parse_train_config(std::string_view toml, const std::string& name,
                               std::span<const std::string> overrides);
/// The effective values as TOML, which parse_train_config takes back unchanged.
std::string to_toml(const TrainConfig& config);

/// The layout that [parallel] asks for. Error: it has another number of ranks, or expert axes that do not
/// fit.
Layout layout_of(const ParallelConfig& config);
/// Rows of a microbatch whose logits exist at once, with their gradient (Pass::loss_rows): train.loss_rows,
/// or on a GPU what fits in 1 GiB of bf16. 0: all do.
int64_t loss_rows_of(const RunConfig& run, int64_t vocabulary);

/// The schedule of `microbatches`, cut into train.slices, on the layout's pp. `config` is checked().
Schedule schedule_of(const TrainConfig& config, int64_t microbatches);
/// The layers of each stage, as parallel.layers gives them; none: as many as go round.
std::vector<int> stage_layers(const ParallelConfig& config);

/// How layers communicate over tp.
inline StreamConfig stream_config(const ParallelConfig& config) {
  return {.sequence = config.sequence, .overlap = config.tp_overlap};
}

/// How to start the ranks that [parallel] asks for; `config` is checked().
LaunchOptions launch_options(const ParallelConfig& config);

/// The config with every value that means "from the others" replaced: the model's (resolved), microbatch,
/// schedule, ranks and layout. Error: values that do not fit each other.
TrainConfig checked(TrainConfig config);

}  // namespace phalanx
