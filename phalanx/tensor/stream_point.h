// A point in what a rank has queued, for ranks that are threads of one process and hand tensors to each
// other: on a GPU an event, so that no host waits; on the CPU nothing, since ops return when they are done.
#pragma once

#include <memory>

#include "phalanx/tensor/tensor.h"

namespace phalanx {

class StreamPoint {
 public:
  /// If the device, or that of `t`, is a GPU: the end of what the calling thread's stream has queued so far.
  void mark(Device device);
  void mark(const Tensor& t) { mark(t.device()); }
  /// If it is a GPU: what the calling thread's stream queues from now on starts behind that point. Another
  /// thread may have marked it, and may mark it anew once this has returned.
  void pass(Device device) const;
  void pass(const Tensor& t) const { pass(t.device()); }

 private:
  std::shared_ptr<void> event_;
};

}  // namespace phalanx
