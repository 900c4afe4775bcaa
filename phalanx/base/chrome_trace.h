// Spans of all ranks in Chrome's trace event format, which Perfetto also opens. One process, "job"; a row (a
// thread) for each rank, one more below it for what alternates with that, for operations in flight as many as
// overlap, and one for each stream of the rank's GPU.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "phalanx/base/trace.h"

namespace phalanx {

/// The row of rank r is thread r; its other rows are threads r + kChromeRow, r + 2 kChromeRow, …
inline constexpr int64_t kChromeRow = 1'000'000;
/// Of a rank's rows the first of its GPU's.
inline constexpr int64_t kChromeDeviceRow = 512;

/// One rank's place in a trace.
struct ChromeRank {
  int rank = 0;
  std::string name;                            ///< of its row
  std::string beside = "overlapped backward";  ///< what alternates with that
  int64_t shift_ns = 0;  ///< added to its times: they become nanoseconds since the trace's beginning
};

/// "F m3 chunk 0", "layers.3 attention forward m3", "all_gather dp layers.3 weights m3".
std::string span_text(const Span& span);

/// The events of one rank, in order of time, outer spans before inner ones. Complete events ("X"), categories
/// by phase_name, or "op", "wait", "communication"; flow events ("s", "f") from a message's sender to its
/// receiver.
std::string chrome_events(std::span<const Span> spans, const ChromeRank& rank);

/// The whole file, from chrome_events of all ranks.
std::string chrome_trace(std::span<const std::string> events_of_ranks);

}  // namespace phalanx
