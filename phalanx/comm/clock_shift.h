// Steady clocks of several hosts on one scale.
#pragma once

#include <cstdint>

#include "phalanx/base/function_ref.h"
#include "phalanx/comm/group.h"

namespace phalanx {

/// The same on all processes of a host since it was booted: their steady clocks agree.
uint64_t clock_host();

/// What to add to this rank's times (nanoseconds of `now`) to have rank 0's. 0 where `host` is rank 0's; else
/// by the shortest of 16 messages there and back (Cristian 1989, Probabilistic clock synchronization, section
/// 4): right to within half of that time. Clocks that drift, by some microseconds a second, are not followed.
/// Collective.
int64_t clock_shift(Group& world, uint64_t host, FunctionRef<int64_t()> now);

}  // namespace phalanx
