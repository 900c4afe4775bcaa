// Points in the work of a GPU's streams, and when it came to them. Defined when kHaveCuda.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "phalanx/base/trace.h"

struct CUstream_st;
struct CUevent_st;

namespace phalanx {
class Stream;
}

namespace phalanx::cuda {

/// For one thread, whose stream at its construction is lane 0.
class Timeline {
 public:
  Timeline();
  Timeline(const Timeline&) = delete;
  Timeline& operator=(const Timeline&) = delete;
  ~Timeline();

  /// `op` is what `stream` was given last; "": a wait, which is none. Of another GPU's stream, or when the
  /// thread does not trace, nothing.
  void mark(const Stream& stream, std::string_view op);
  /// See DeviceTrace.
  std::vector<Span> take();

 private:
  struct Mark {
    size_t lane;
    const char* op;
    TraceLabel of;
    int64_t queued_ns;
    CUevent_st* event;
  };

  size_t lane_of(CUstream_st* stream);
  CUevent_st* record(CUstream_st* stream);
  void wait_for_all() const;

  int device_;
  std::vector<CUstream_st*> lanes_;
  std::vector<Mark> marks_;
  std::vector<CUevent_st*> unused_;
  int64_t begin_ns_;
};

/// The calling thread's, or null.
Timeline* timeline();
/// Gives the one before.
Timeline* set_timeline(Timeline* timeline);

}  // namespace phalanx::cuda
