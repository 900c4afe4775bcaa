// Small training runs on random text, for tests that need a whole rank.
#pragma once

#include "phalanx/train/data.h"
#include "phalanx/train/train_config.h"

namespace phalanx {

/// A GPT-like, a Llama-like, one with latent attention and a mixture of experts: 4 layers of 32, sequences of
/// 32 tokens, 8 a step in microbatches of 2; checked.
TrainConfig small_gpt(const Layout& layout, const char* schedule);
TrainConfig small_llama(const Layout& layout, const char* schedule);
TrainConfig small_mla(const Layout& layout, const char* schedule);
/// The same with heads that cuDNN takes in bf16, of 32 and 16 columns.
TrainConfig small_mla_of_gpus(const Layout& layout, const char* schedule);
TrainConfig small_moe(const Layout& layout, const char* schedule);
/// The last with multi-token prediction of two depths.
TrainConfig small_mtp(const Layout& layout, const char* schedule);

/// Random characters, enough for a few steps.
Dataset random_text(const TrainConfig& config, unsigned seed);

}  // namespace phalanx
