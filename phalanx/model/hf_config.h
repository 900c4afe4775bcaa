// A model's config.json as Hugging Face's transformers write and read it.
#pragma once

#include <filesystem>
#include <string>

#include "phalanx/model/config.h"

namespace phalanx {

/// Whose tensor names and config.json: GPT2LMHeadModel, LlamaForCausalLM, MixtralForCausalLM,
/// DeepseekV3ForCausalLM.
enum class HfFamily : uint8_t { gpt2, llama, mixtral, deepseek_v3 };

/// The family that a (resolved) model belongs to. Error: to none; says what would have to be otherwise.
HfFamily hf_family(const ModelConfig& config);

/// The text of config.json for a (resolved) model. `dtype`: of the weights beside it.
std::string hf_config_text(const ModelConfig& config, DType dtype);

/// The (resolved) model of a config.json. What it does not say is the default of transformers. Error, naming
/// file and key: another family, or something that this engine does not compute.
ModelConfig read_hf_config(const std::filesystem::path& path);

}  // namespace phalanx
