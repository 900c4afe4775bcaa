#include "phalanx/train/rank_run.h"

#include <unistd.h>

#include "phalanx/base/error.h"
#include "phalanx/base/units.h"

namespace phalanx {
namespace {

TrainConfig with_vocabulary(TrainConfig config, int64_t vocabulary) {
  config.model.vocabulary = vocabulary;
  return config;
}

RowShare share_of(const RunConfig& config, const Mesh& mesh) {
  return row_share(config.batch, config.microbatch, mesh.size(Axis::dp), mesh.coordinate(Axis::dp));
}

// Error: a rank's weights, gradients and optimizer state alone are more than the machine's memory.
void check_memory(ParameterStore& parameters, OptimizerConfig::Kind optimizer) {
  int64_t elements = 0;
  for (const Parameter& p : parameters.all()) elements += p.slice().local.numel();
  const uint64_t copies = optimizer == OptimizerConfig::Kind::adamw ? 4 : 2;
  const uint64_t needed = static_cast<uint64_t>(elements) * dtype_size(parameters.dtype()) * copies;
  const auto memory =
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  if (needed <= memory) return;
  throw Error(
      "the model has {} parameters a rank: with gradients and optimizer {}, this machine has {}; take a "
      "smaller "
      "model.width or fewer model.layers",
      grouped(static_cast<uint64_t>(elements)), human_bytes(needed), human_bytes(memory));
}

// The parameters exist once the model is built, and the optimizer's state takes their layout.
ParameterStore& initialised(ParameterStore& parameters, const TrainConfig& config) {
  check_memory(parameters, config.optimizer.kind);
  parameters.initialise(config.train.seed);
  return parameters;
}

}  // namespace

RankRun::RankRun(const TrainConfig& config, int64_t vocabulary, Group& world)
    : config_(with_vocabulary(config, vocabulary)),
      mesh_(world, layout_of(config.parallel)),
      share_(share_of(config.train, mesh_)),
      schedule_(schedule_of(config, share_.microbatches())),
      parameters_(
          mesh_, config.train.dtype,
          {.stage = static_cast<Zero>(config.parallel.zero), .shard = config.parallel.shard},
          {.narrow = config.train.weights == KeptWeights::bf16, .master_in = config.optimizer.offload}),
      model_(parameters_, config_.model, config.train.seed, stream_config(config.parallel),
             config.parallel.ulysses,
             parts_of_rank(schedule_, mesh_.coordinate(Axis::pp), config.model.layers,
                           stage_layers(config.parallel))),
      optimizer_(initialised(parameters_, config), config.optimizer),
      trainer_{mesh_,       parameters_,           model_, optimizer_, Pipeline(schedule_, mesh_),
               config.clip, config.train.recompute} {
  share_.context = model_.context_share();
  share_.depths = config_.model.mtp;
  share_.slices = config.train.slices;
}

}  // namespace phalanx
