// The learning rate of each step: a linear warm-up, then a decay.
#pragma once

#include <cstdint>

namespace phalanx {

/// constant stays at lr; linear and cosine end at min_lr.
enum class Decay : uint8_t { cosine, linear, constant };

struct LrConfig {
  double lr = 1e-3;
  double min_lr = 1e-4;
  int64_t warmup = 100;     ///< steps
  int64_t decay_steps = 0;  ///< the step at which min_lr is reached; 0: the number of steps of the run
  Decay decay = Decay::cosine;
};

/// The learning rate of step 0, 1, … of a run of `steps`. With e = decay_steps, as in nanoGPT's present
/// version:
///   step < warmup:      lr · (step + 1) / (warmup + 1)
///   warmup ≤ step < e:  min_lr + c · (lr − min_lr), c = ½ (1 + cos π r), r = (step − warmup) / (e − warmup)
///   e ≤ step:           min_lr
/// Its earlier versions warmed up by lr · step / warmup, so that the first step changed nothing. Linear decay
/// has c = 1 − r.
double learning_rate(const LrConfig& config, int64_t step, int64_t steps);

}  // namespace phalanx
