// Tensors in files: what is touched once a step need not stay in memory.
#pragma once

#include <filesystem>

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// Zeros in a new file of `directory`, mapped into memory: the system writes pages out and reads them again
/// as it needs their memory. The file has no name, and goes with its last tensor or with the process. Error:
/// the directory cannot be written, or has no room (found here, not when pages are written).
Tensor mapped_zeros(const Shape& shape, DType dtype, const std::filesystem::path& directory);

}  // namespace phalanx
