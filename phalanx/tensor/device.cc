#include "phalanx/tensor/device.h"

#include "phalanx/base/error.h"
#include "phalanx/tensor/cuda_tensor.h"

namespace phalanx {

std::string device_name(Device device) {
  return device.is_cuda() ? format("cuda:{}", static_cast<int>(device.index)) : "cpu";
}

int cuda_initialise(const CudaOptions& options) {
  if constexpr (kHaveCuda) return cuda::initialise(options);
  throw Error("this build of Phalanx has no CUDA: build with `cmake --preset cuda`, or use the CPU");
}

}  // namespace phalanx
