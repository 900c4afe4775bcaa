#include "phalanx/tensor/device_trace.h"

#include "phalanx/tensor/timeline.h"

namespace phalanx {

DeviceTrace::DeviceTrace(Device device) {
  if constexpr (kHaveCuda) {
    if (device.is_cuda()) timeline_ = std::make_shared<cuda::Timeline>();
  }
}

std::vector<Span> DeviceTrace::take() {
  if constexpr (kHaveCuda) {
    if (timeline_) return timeline_->take();
  }
  return {};
}

DeviceTraceScope::DeviceTraceScope([[maybe_unused]] const DeviceTrace* trace) {
  if constexpr (kHaveCuda) previous_ = cuda::set_timeline(trace ? trace->timeline_.get() : nullptr);
}

DeviceTraceScope::~DeviceTraceScope() {
  if constexpr (kHaveCuda) cuda::set_timeline(previous_);
}

}  // namespace phalanx
