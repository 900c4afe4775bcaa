#include "phalanx/train/rank_run.h"

#include "phalanx/ops/matmul.h"
#include "phalanx/train/memory.h"

namespace phalanx {
namespace {

TrainConfig completed(TrainConfig config, int64_t vocabulary) {
  config.model.vocabulary = vocabulary;
  config.optimizer.seed = config.train.seed;
  return config;
}

RowShare share_of(const RunConfig& config, const Mesh& mesh) {
  return row_share(config.batch, config.microbatch, mesh.size(Axis::dp), mesh.coordinate(Axis::dp));
}

// The coordinates of pp of the ranks that share this one's GPU: threads of one process take its GPUs in turn,
// processes have one each.
std::vector<int> pp_ranks_on(Device device, TransportKind transport, const Mesh& mesh) {
  if (transport != TransportKind::threads) return {mesh.coordinate(Axis::pp)};
  std::vector<int> pp_ranks;
  for (int rank = 0; rank < mesh.world().size(); ++rank) {
    if (device_of_rank(device.kind, rank) != device) continue;
    pp_ranks.push_back(mesh.coordinates_of(rank)[static_cast<size_t>(Axis::pp)]);
  }
  return pp_ranks;
}

// The parameters exist once the model is built, and the optimizer's state takes their layout.
ParameterStore& initialised(ParameterStore& parameters, const TrainConfig& config, const Mesh& mesh) {
  const Device device = parameters.device();
  const uint64_t room = memory_of(device);
  if (device.is_cuda()) {
    check_gpu_memory(config, config.model.vocabulary, pp_ranks_on(device, config.parallel.transport, mesh),
                     room);
  } else {
    check_memory(memory_account(config, config.model.vocabulary, mesh.coordinate(Axis::pp)), room);
  }
  parameters.initialise(config.train.seed);
  return parameters;
}

}  // namespace

RankRun::RankRun(const TrainConfig& config, int64_t vocabulary, Group& world)
    : config_(completed(config, vocabulary)),
      device_(device_of_rank(config.train.device, world.rank_on_host())),
      scope_(device_),
      mesh_(world, layout_of(config.parallel)),
      share_(share_of(config.train, mesh_)),
      schedule_(schedule_of(config, share_.microbatches())),
      parameters_(mesh_, config.train.dtype,
                  {.stage = static_cast<Zero>(config.parallel.zero), .shard = config.parallel.shard},
                  {.narrow = config.train.weights == KeptWeights::bf16,
                   .master = config.optimizer.master == OptimizerConfig::Master::same,
                   .narrow_gradients = config.train.gradients == KeptWeights::bf16,
                   .master_in = config.optimizer.offload,
                   .products = config.train.products,
                   .device = device_}),
      model_(parameters_, config_.model, config.train.seed, stream_config(config.parallel),
             config.parallel.ulysses,
             parts_of_rank(schedule_, mesh_.coordinate(Axis::pp), config.model.layers,
                           stage_layers(config.parallel))),
      optimizer_(initialised(parameters_, config_, mesh_), config_.optimizer),
      places_(parameters_, model_, optimizer_, config.parallel),
      trainer_{mesh_,       parameters_,           model_, optimizer_, Pipeline(schedule_, mesh_),
               config.clip, config.train.recompute} {
  trainer_.deterministic = config.train.deterministic;
  wait_for_each_op(device_, config.train.blocking);
  if (device_.is_cuda()) tune_products(!config.train.deterministic);
  trainer_.loss_rows = loss_rows_of(config.train, vocabulary);
  if (config.parallel.rebalance_every > 0) trainer_.places = &places_;
  share_.context = model_.context_share();
  share_.depths = config_.model.mtp;
  share_.slices = config.train.slices;
}

}  // namespace phalanx
