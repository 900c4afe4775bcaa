// Weights of Hugging Face's checkpoints, read into a model in any layout and written from a whole one.
#pragma once

#include <filesystem>

#include "phalanx/model/config.h"
#include "phalanx/parallel/parameter_store.h"

namespace phalanx {

/// Fills this rank's part of every parameter, and its routers' biases, from a directory's model.safetensors,
/// or the files that its index names; reads no more than that part (of heads whose pairs stand otherwise,
/// whole heads; with ZeRO-3, whole rows). F64, F32, BF16 and F16 are converted to the store's dtype. Tensors
/// that the model has no place for are left alone. Does not communicate. Error, naming file and tensor: it is
/// missing or has another shape.
void load_hf_weights(ParameterStore& parameters, const ModelConfig& config,
                     const std::filesystem::path& directory);

/// Writes a new directory with config.json and model.safetensors; the store is that of one rank. What was
/// written reads back bit for bit. Error: the directory exists, or the model belongs to no family
/// (model/hf_config.h), or a router has a bias and the family none.
void save_hf_model(ParameterStore& parameters, const ModelConfig& config,
                   const std::filesystem::path& directory);

}  // namespace phalanx
