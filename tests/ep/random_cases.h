// Dispatch and combine on random ranks, experts, tokens and dtypes.
#pragma once

#include <functional>

#include "phalanx/comm/rank.h"

namespace phalanx::ep {

/// Runs a body on so many ranks.
using RunRanks = std::function<void(int ranks, const RankBody& body)>;

/// One rank's part of cases [first, last) of those that are drawn from `seed`.
void check_cases(Group& world, unsigned seed, int first, int last);

/// Worlds of 1, 2, … 16, 1, … ranks, each with so many of the cases: uneven experts, ranks without any
/// or without tokens, K up to 32, slots that name none, skewed choices, four dtypes. Rows and sums must be
/// those of a slow account of them, bit for bit.
void check_cases(int cases, int cases_a_world, const RunRanks& run_ranks);

/// Threads in each other's memory, threads that send messages which come late, and processes in each other's
/// memory.
RunRanks directly();
RunRanks by_messages();
RunRanks in_processes();

}  // namespace phalanx::ep
