// What a training run leaves to be looked at.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "phalanx/train/memory.h"
#include "phalanx/train/pipeline_history.h"
#include "phalanx/train/step.h"

namespace phalanx {

/// One optimizer step, on all ranks.
struct StepRecord {
  int64_t step = 0;  ///< from 0
  double loss = 0;   ///< nats a token
  double balance_loss = 0;
  double lr = 0;
  double grad_norm = 0;
  double tokens_per_s = 0;
  double gemm_share = 0;  ///< of the machine's matrix-product speed, measured at the start of the run
  double z_loss = 0;      ///< as StepResult::z_loss
  double mtp_loss = 0;    ///< as StepResult::mtp_loss
};

struct EvaluationRecord {
  int64_t step = 0;     ///< steps taken before it
  double val_loss = 0;  ///< nats a token
};

/// What one rank's tensors took, in bytes, where it computed: of blocks in use at most at once since it
/// began, and what was taken for them from the system or the GPU.
struct RankMemory {
  std::string device;  ///< as device_name
  int64_t peak = 0;
  int64_t reserved = 0;
};

/// One run, as rank 0 saw it.
struct TrainingHistory {
  std::string title;    ///< of the report: the config's name
  std::string config;   ///< as TOML, printed once
  std::string machine;  ///< CPU, ranks, threads
  int64_t parameters = 0;
  int64_t active_parameters = 0;
  double seconds = 0;  ///< of training, without evaluation and saving
  std::vector<StepRecord> steps;
  std::vector<EvaluationRecord> evaluations;
  /// How often each expert was chosen over the run, over all ranks: [MoE layer][expert]; empty for dense
  /// models.
  std::vector<std::vector<int64_t>> expert_tokens;
  std::vector<RankMemory> memory;          ///< by rank
  MemoryAccount expected_memory;           ///< of rank 0's step, from the config
  PhaseSeconds phases;                     ///< summed over the steps, of rank 0
  double wait_seconds = 0;                 ///< part of those spent waiting for other ranks
  std::optional<PipelineRecord> pipeline;  ///< of rank 0's, with pp > 1: a late step of median time
  double evaluate_seconds = 0;
  double save_seconds = 0;
};

}  // namespace phalanx
