// How time counts between the hub and its lifelines.
#pragma once

#include <chrono>

namespace phalanx {

/// A process gives a sign of life this often: many times before its silence counts as death.
inline std::chrono::milliseconds beat_interval(std::chrono::milliseconds liveness) { return liveness / 20; }

/// For messages.
inline double in_seconds(std::chrono::nanoseconds t) { return std::chrono::duration<double>(t).count(); }

}  // namespace phalanx
