// The GPU on which CUDA makes what a thread asks for.
#pragma once

#include "phalanx/tensor/cuda_check.cuh"
#include "phalanx/tensor/device.h"

namespace phalanx::cuda {

/// What CUDA makes (streams, events, memory) is the thread's current GPU's, which a thread that has no stream
/// yet has not chosen. Within this scope it is `device`.
class CurrentGpu {
 public:
  explicit CurrentGpu(Device device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    check(cudaSetDevice(device.index), "cudaSetDevice");
  }
  CurrentGpu(const CurrentGpu&) = delete;
  CurrentGpu& operator=(const CurrentGpu&) = delete;
  ~CurrentGpu() { (void)cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

}  // namespace phalanx::cuda
