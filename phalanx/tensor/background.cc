#include "phalanx/tensor/background.h"

#include "phalanx/tensor/cuda_tensor.h"

namespace phalanx {

Background::Background(Device device) {
  if constexpr (kHaveCuda) {
    if (device.is_cuda()) stream_ = cuda::background(device);
  }
}

std::shared_ptr<void> Background::enter() const {
  if constexpr (kHaveCuda) {
    if (stream_) return cuda::enter_background(stream_);
  }
  return nullptr;
}

}  // namespace phalanx
