// What the other ranks of a machine may see of a rank without asking it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include "phalanx/comm/bell.h"
#include "phalanx/comm/flight_recorder.h"

namespace phalanx {

/// One rank's; plain memory, so that processes can share it.
struct RankPage {
  /// absent: not there yet; left: its body has returned, it calls nothing more; failed: its body has thrown.
  enum class State : uint32_t { absent, running, left, failed };

  Bell bell;
  std::atomic<State> state{State::absent};
  std::array<char, 4096> report{};  ///< what a failed rank said; written before `state`
  FlightRecorder recorder;

  /// Sets report (cut to its size) and then the state.
  void fail(std::string_view text) noexcept;
  std::string report_text() const { return std::string(report.data()); }
  /// State and recorder as bytes, taken while the rank goes on; and back, into a page of nobody's.
  std::string snapshot() const;
  void restore(std::string_view bytes);
};

}  // namespace phalanx
