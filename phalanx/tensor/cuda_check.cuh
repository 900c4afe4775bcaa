// CUDA's status codes as errors. Only sources that need the CUDA headers include this one.
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

#include "phalanx/base/error.h"

namespace phalanx::cuda {

/// Throws Error, naming the call and what CUDA says, unless `status` is success.
inline void check(cudaError_t status, std::string_view call) {
  if (status == cudaSuccess) [[likely]]
    return;
  (void)cudaGetLastError();  // errors that are not sticky are not reported again by a later launch
  throw Error("{}: {} ({})", call, cudaGetErrorString(status), cudaGetErrorName(status));
}

/// Throws when the last kernel launch of this thread was refused.
inline void check_launch(std::string_view kernel) { check(cudaGetLastError(), kernel); }

}  // namespace phalanx::cuda
