// Nodes of several ranks, random experts and tokens, which all ranks draw from a seed.
#pragma once

#include "phalanx/ep/buffer.h"

namespace phalanx::ep {

/// Rows arrive as on one level, and sums are those of a slow account of two, bit for bit.
void check_two_level(Group& world, const BufferOptions& two_level, unsigned seed);
/// Every link carries the bytes of phalanx/ep/two_level.h.
void check_link_bytes(Group& world, const BufferOptions& two_level, unsigned seed);

/// By size: few tokens go as on one level, many of any rank as on two, with the same sums and bytes.
void check_by_size(Group& world, int of_node, unsigned seed);

/// Where nodes share no memory: the bytes inside and between them are those of the way that the phase means.
void check_phase(Group& world, int of_node, Phase phase, unsigned seed);

/// So many cached dispatches of many wide rows, each with its combine. Gives what that sends between nodes of
/// `of_node` ranks, over all ranks: a row for each (token, node) on two levels, else for each (token, rank).
int64_t send_much(Group& world, const BufferOptions& options, int of_node, int rounds);

}  // namespace phalanx::ep
