// Rows over two kinds of links: few fast ones inside a node, slow ones between nodes (DeepEP's internode
// mode).
#pragma once

#include "phalanx/ep/transfer.h"

namespace phalanx::ep {

/// Ranks n·G … n·G + G − 1 of the group are node n. A token's row goes once to every node that has one of its
/// ranks: to the rank there whose place in the node is the sender's, which passes it on. Sums are made inside
/// a node first, by rank, rounded to the rows' dtype (bf16, f16: as combine's); one row for each (token,
/// node) travels back, and those are summed by node. Inside a node, whose ranks share memory, rows move as in
/// direct_transfer.
///
/// Bytes that a rank sends, with n of its (token, node) pairs going to other nodes, m coming from them, and b
/// bytes a row: between nodes n · b (collect: m · b), and 8·n and counts for a plan; inside its node as much
/// as the rows that it passes on to others there. In FP8 sums travel between nodes in FP8 too.
///
/// Pairs are by rank (PairOrder::by_rank). Where no rank has more than `above` bytes of rows to dispatch,
/// they go on one level, as in message_transfer, and so does what is made of them; −1: never. Every rank
/// calls it. Error: G does not divide the ranks, or is above 63; the ranks of a node do not share memory.
std::unique_ptr<Transfer> two_level_transfer(Group& group, int ranks_of_node, int64_t above = -1);

/// Up to about so many bytes of a rank's rows the second level's delay costs more than the bytes that it
/// saves (docs/benchmarks.md).
inline constexpr int64_t kTwoLevelsPay = 64 << 10;

}  // namespace phalanx::ep
