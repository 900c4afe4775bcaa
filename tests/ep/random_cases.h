// Dispatch and combine on random ranks, experts, tokens and dtypes.
#pragma once

#include "phalanx/comm/transport/threads.h"

namespace phalanx::ep {

/// Worlds of 1, 2, … 16, 1, … thread ranks, each with so many of the cases: uneven experts, ranks without any
/// or without tokens, K up to 32, slots that name none, skewed choices, four dtypes. Rows and sums must be
/// those of a slow account of them, bit for bit.
void check_cases(int cases, int cases_a_world, const WrapTransport& wrap);

/// Transports that share memory, and that send messages which come late.
WrapTransport directly();
WrapTransport by_messages();

}  // namespace phalanx::ep
