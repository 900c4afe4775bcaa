#include "phalanx/tensor/stream_point.h"

#include "phalanx/tensor/stream.h"

namespace phalanx {

void StreamPoint::mark(const Tensor& t) {
  if constexpr (kHaveCuda) {
    if (!t.on_cuda()) return;
    if (!event_) event_ = std::make_shared<Event>();
    static_cast<Event*>(event_.get())->record(current_stream());
  }
}

void StreamPoint::pass(const Tensor& t) const {
  if constexpr (kHaveCuda) {
    if (t.on_cuda() && event_) current_stream().wait(*static_cast<const Event*>(event_.get()));
  }
}

}  // namespace phalanx
