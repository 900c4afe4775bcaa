// How the host waits for a GPU whose work may itself wait for other ranks: looking about meanwhile.
#pragma once

#include <chrono>
#include <functional>

struct CUstream_st;
struct CUevent_st;

namespace phalanx {

/// While it lives, each wait of the constructing thread for a GPU (Stream::synchronise, Event::wait, a copy
/// to or from the host) calls `look` about every 50 µs with how long the wait has lasted; what it throws ends
/// the wait. Those of one thread nest; the innermost counts. Destroyed by the thread that has made it.
class StreamWaitScope {
 public:
  using Look = std::function<void(std::chrono::nanoseconds waited)>;
  explicit StreamWaitScope(Look look);
  ~StreamWaitScope();
  StreamWaitScope(const StreamWaitScope&) = delete;
  StreamWaitScope& operator=(const StreamWaitScope&) = delete;

 private:
  Look look_;
  const Look* outer_;
};

namespace cuda {

/// Blocks the host until all that is queued on `stream` has finished. Error, which begins with `what`, when
/// CUDA failed.
void wait_for(CUstream_st* stream, const char* what);
/// The same of what an event marks.
void wait_for(CUevent_st* event, const char* what);

}  // namespace cuda

}  // namespace phalanx
