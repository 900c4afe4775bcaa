// One rank of a small training step, for tests.
#pragma once

#include <vector>

#include "phalanx/train/step.h"

namespace phalanx {

inline constexpr int64_t kSequences = 4;  // in a microbatch of the whole job
inline constexpr int kMicrobatches = 3;

/// The rows of a microbatch that this rank holds, or of its slices: dp ranks take consecutive runs of the
/// same sequences, each of which is cut into two documents.
std::vector<Batch> batches(const Mesh& mesh, const ContextShare& share, const ModelConfig& config,
                           unsigned seed, int slices = 1);

/// Everything one rank needs for a step.
struct Rank {
  Rank(Group& world, const Layout& layout, const ModelConfig& config, DType dtype, const char* name,
       uint64_t seed, const StreamConfig& stream = {}, int ulysses = 0, int slices = 1)
      : mesh(world, layout),
        store(mesh, dtype),
        schedule(make_schedule(name, {.ranks = layout.pp, .microbatches = kMicrobatches, .slices = slices})),
        model(store, resolved(config), seed, stream, ulysses,
              parts_of_rank(schedule, mesh.coordinate(Axis::pp), config.layers)),
        optimizer((store.initialise(seed), store), {}),
        trainer{mesh, store, model, optimizer, Pipeline(schedule, mesh), 1.0} {}
  Mesh mesh;
  ParameterStore store;
  Schedule schedule;
  Transformer model;
  Optimizer optimizer;
  Trainer trainer;
};

}  // namespace phalanx
