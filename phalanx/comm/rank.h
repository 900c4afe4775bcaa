// The life of one rank, the same on every transport.
#pragma once

#include <exception>
#include <functional>

#include "phalanx/comm/group.h"

namespace phalanx {

/// What a rank runs, given the group of all ranks.
using RankBody = std::function<void(Group& world)>;

/// Runs body(world) over `transport` on this thread: announces the rank in its page, and how it ended. An
/// exception fails the world and is returned, null if there was none.
std::exception_ptr run_rank(Transport& transport, const Deadlines& deadlines, const RankBody& body);

}  // namespace phalanx
