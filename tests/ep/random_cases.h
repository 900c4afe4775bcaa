// Dispatch and combine on random ranks, experts, tokens and dtypes.
#pragma once

#include <functional>

#include "phalanx/comm/transport/threads.h"

namespace phalanx::ep {

/// Runs a body on so many ranks.
using RunRanks = std::function<void(int ranks, const RankBody& body)>;

/// One rank's part of cases [first, last) of those that are drawn from `seed`.
void check_cases(Group& world, unsigned seed, int first, int last);

/// Worlds of 1, 2, … 16, 1, … ranks, each with so many of the cases: uneven experts, half of the time with
/// replicas, ranks without any or without tokens, K up to 32, slots that name none, skewed choices, four
/// dtypes. Rows and sums must be those of a slow account of them, bit for bit.
void check_cases(int cases, int cases_a_world, const RunRanks& run_ranks);

/// On threads, and on processes, which share memory too.
RunRanks on_threads(const WrapTransport& wrap);
RunRanks on_processes();

/// Transports that share memory, and that send messages which come late.
WrapTransport directly();
WrapTransport by_messages();

}  // namespace phalanx::ep
