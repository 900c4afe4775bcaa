// Which queries meet which keys in causal attention over packed sequences, as squares and rectangles: where a
// rank has some rows, against its own keys or another rank's.
#pragma once

#include <cstdint>
#include <span>

#include "phalanx/base/pooled.h"

namespace phalanx {

/// Rows begin … end − 1 of all rows.
struct RowRun {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t rows() const { return end - begin; }
};
using RowRuns = PooledVector<RowRun>;

/// Rows of q and of k. Every query sees every key; or, if causal, there are as many of both and each query
/// sees the keys up to its own.
struct AttentionTile {
  int64_t first_query = 0;
  int64_t queries = 0;
  int64_t first_key = 0;
  int64_t keys = 0;
  bool causal = false;

  /// (query, key) pairs that meet.
  int64_t pairs() const { return causal ? queries * (queries + 1) / 2 : queries * keys; }
  friend bool operator==(const AttentionTile&, const AttentionTile&) = default;
};

/// Squares are causal and share neither queries nor keys; rectangles are not, and may share both.
struct AttentionTiles {
  PooledVector<AttentionTile> squares;
  PooledVector<AttentionTile> rectangles;

  int64_t pairs() const;
};

/// A square for each sequence; `offsets` [B+1] cut all rows into sequences.
AttentionTiles attention_tiles(std::span<const int64_t> offsets);
/// The same where q has the rows of `queries`, one run after the other, and k those of `keys`. Runs ascend; a
/// run of queries and one of keys are the same or apart. What no query sees has no tile.
AttentionTiles attention_tiles(std::span<const int64_t> offsets, std::span<const RowRun> queries,
                               std::span<const RowRun> keys);
/// Where all keys of a sequence come before all its queries: a rectangle for each sequence. Offsets [B+1] cut
/// the queries, and others the keys, into sequences.
AttentionTiles attention_rectangles(std::span<const int64_t> of_queries, std::span<const int64_t> of_keys);

}  // namespace phalanx
