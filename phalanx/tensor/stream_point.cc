#include "phalanx/tensor/stream_point.h"

#include "phalanx/tensor/stream.h"

namespace phalanx {

void StreamPoint::mark(Device device) {
  if constexpr (kHaveCuda) {
    if (!device.is_cuda()) return;
    if (!event_) event_ = std::make_shared<Event>();
    static_cast<Event*>(event_.get())->record(current_stream());
  }
}

void StreamPoint::pass(Device device) const {
  if constexpr (kHaveCuda) {
    if (device.is_cuda() && event_) current_stream().wait(*static_cast<const Event*>(event_.get()));
  }
}

}  // namespace phalanx
