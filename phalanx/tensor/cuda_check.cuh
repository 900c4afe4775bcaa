// CUDA's status codes as errors. Only sources that need the CUDA headers include this one.
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

#include "phalanx/tensor/device.h"

namespace phalanx::cuda {

/// Throws DeviceError, naming the call and what CUDA says, unless `status` is success.
inline void check(cudaError_t status, std::string_view call) {
  if (status == cudaSuccess) [[likely]]
    return;
  (void)cudaGetLastError();  // errors that are not sticky are not reported again by a later launch
  throw DeviceError("{}: {} ({})", call, cudaGetErrorString(status), cudaGetErrorName(status));
}

/// Remembers what the calling thread's stream was given last, a literal; waits for it if that was asked for.
void queued(std::string_view op);

/// After a launch: throws when it was refused.
inline void check_launch(std::string_view op) {
  check(cudaGetLastError(), op);
  queued(op);
}

}  // namespace phalanx::cuda
