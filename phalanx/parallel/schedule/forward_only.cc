// Forwards alone, for evaluation: in every slot of time each rank takes, of what it can, the deepest stage,
// so that few activations wait between stages.
#include "phalanx/parallel/schedule/schedule.h"

namespace phalanx {

Schedule forward_only(const Schedule& like, int microbatches) {
  Schedule s = like;
  s.name = "forward-only";
  s.has_backward = false;
  s.microbatches = microbatches;
  s.steps.assign(static_cast<size_t>(s.ranks), {});
  const int directions = s.map == StageMap::both_ways ? 1 : s.chunks_per_rank;
  std::vector<int> passed(static_cast<size_t>(s.stages()), 0);  // by stage: microbatches, in order
  while (passed.back() < microbatches) {
    const std::vector<int> before = passed;
    const auto is_ready = [&](size_t stage) {
      return before[stage] < microbatches && (stage == 0 || before[stage] < before[stage - 1]);
    };
    for (int rank = 0; rank < s.ranks; ++rank) {
      int deepest = -1;
      for (int chunk = 0; chunk < directions; ++chunk) {
        const int stage = s.stage(rank, chunk);
        if (!is_ready(static_cast<size_t>(stage))) continue;
        if (deepest < 0 || stage > s.stage(rank, deepest)) deepest = chunk;
      }
      if (deepest < 0) continue;
      int& microbatch = passed[static_cast<size_t>(s.stage(rank, deepest))];
      s.steps[static_cast<size_t>(rank)].push_back({StepOp::F, deepest, microbatch++});
    }
  }
  return s;
}

}  // namespace phalanx
