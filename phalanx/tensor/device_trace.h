// What a rank's GPU did, and when, beside what its thread traced (base/trace.h).
#pragma once

#include <memory>
#include <vector>

#include "phalanx/base/trace.h"
#include "phalanx/tensor/device.h"

namespace phalanx {

namespace cuda {
class Timeline;
}  // namespace cuda

/// The ops that a thread queues on streams of one GPU while it traces in a DeviceTraceScope, each as a span
/// of the row `device`. CUDA tells when an op ended; it is taken to have begun when its stream had done what
/// came before it there and what it waited for, but not before the host had queued the op before it. Of a CPU
/// nothing: its ops are done when they return.
class DeviceTrace {
 public:
  /// On a thread whose stream is of `device`, which is lane 0 of the spans; others follow as they come.
  explicit DeviceTrace(Device device);
  /// Waits for the GPU, and gives the spans since the last time. Their texts live as long as the TraceRing.
  std::vector<Span> take();

 private:
  friend class DeviceTraceScope;
  std::shared_ptr<cuda::Timeline> timeline_;  // null: of the CPU
};

/// What the calling thread queues while it lives goes into `trace` (null: into none), which outlives it.
class DeviceTraceScope {
 public:
  explicit DeviceTraceScope(const DeviceTrace* trace);
  DeviceTraceScope(const DeviceTraceScope&) = delete;
  DeviceTraceScope& operator=(const DeviceTraceScope&) = delete;
  ~DeviceTraceScope();

 private:
  cuda::Timeline* previous_ = nullptr;
};

}  // namespace phalanx
