#include "phalanx/train/rank_run.h"

#include "phalanx/base/error.h"

namespace phalanx {
namespace {

Layout trainable(const Layout& layout) {
  check_trainable(layout);
  return layout;
}

TrainConfig with_vocabulary(TrainConfig config, int64_t vocabulary) {
  config.model.vocabulary = vocabulary;
  return config;
}

Steps schedule_of(ScheduleKind kind, int64_t microbatches) {
  const auto m = static_cast<int>(microbatches);
  return kind == ScheduleKind::overlapped ? overlapped(m) : sequential(m);
}

// The parameters exist once the model is built, and the optimizer's state takes their layout.
ParameterStore& initialised(ParameterStore& parameters, uint64_t seed) {
  parameters.initialise(seed);
  return parameters;
}

}  // namespace

void check_trainable(const Layout& layout) {
  if (layout.pp * layout.cp * layout.tp * layout.etp == 1) return;
  throw Error("layout {}: this version trains with dp and ep; pp, cp, tp and etp must be 1", layout.text());
}

RankRun::RankRun(const TrainConfig& config, int64_t vocabulary, Group& world)
    : config_(with_vocabulary(config, vocabulary)),
      mesh_(world, trainable(layout_of(config.parallel))),
      share_(row_share(config.train.batch, config.train.microbatch, mesh_.size(Axis::dp),
                       mesh_.coordinate(Axis::dp))),
      parameters_(mesh_, config.train.dtype),
      model_(parameters_, config_.model, config.train.seed),
      optimizer_(initialised(parameters_, config.train.seed), config.optimizer),
      trainer_{mesh_,
               parameters_,
               model_,
               optimizer_,
               schedule_of(config.train.schedule, share_.microbatches()),
               config.clip} {}

}  // namespace phalanx
