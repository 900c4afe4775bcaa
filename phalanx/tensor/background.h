// Work that may take its time beside what a rank computes.
#pragma once

#include <memory>

#include "phalanx/tensor/device.h"

namespace phalanx {

/// A second stream of a GPU, whose kernels give way to those of ranks' own streams; of the CPU nothing, where
/// ops return when they are done. For one thread at a time, on which the device's own stream is current.
class Background {
 public:
  explicit Background(Device device);
  /// As long as the result lives what the calling thread queues goes there, behind all that it has queued so
  /// far. A StreamPoint marked there tells others when it is done.
  std::shared_ptr<void> enter() const;

 private:
  std::shared_ptr<void> stream_;  // null: of the CPU
};

}  // namespace phalanx
