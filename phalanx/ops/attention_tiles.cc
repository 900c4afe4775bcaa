#include "phalanx/ops/attention_tiles.h"

#include <algorithm>

#include "phalanx/base/check.h"

namespace phalanx {
namespace {

// Calls f(run, row) for each run, with the tensor's row at which it begins.
template <class F>
void for_each_run(std::span<const RowRun> runs, F f) {
  int64_t row = 0;
  for (const RowRun& run : runs) {
    f(run, row);
    row += run.rows();
  }
}

RowRun common(const RowRun& a, const RowRun& b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

}  // namespace

int64_t AttentionTiles::pairs() const {
  int64_t sum = 0;
  for (const AttentionTile& t : squares) sum += t.pairs();
  for (const AttentionTile& t : rectangles) sum += t.pairs();
  return sum;
}

AttentionTiles attention_tiles(std::span<const int64_t> offsets) {
  const RowRun all = {0, offsets.back()};
  return attention_tiles(offsets, {&all, 1}, {&all, 1});
}

AttentionTiles attention_tiles(std::span<const int64_t> offsets, std::span<const RowRun> queries,
                               std::span<const RowRun> keys) {
  AttentionTiles tiles;
  for_each_run(queries, [&](const RowRun& q, int64_t query_row) {
    for_each_run(keys, [&](const RowRun& k, int64_t key_row) {
      if (k.begin >= q.end) return;  // its keys come later
      const bool same = k.begin == q.begin && k.end == q.end;
      PHX_CHECK(same || k.end <= q.begin, "queries {} … {} and keys {} … {} overlap", q.begin, q.end, k.begin,
                k.end);
      for (size_t b = 0; b + 1 < offsets.size(); ++b) {
        const RowRun sequence = {offsets[b], offsets[b + 1]};
        const RowRun seeing = common(q, sequence);
        const RowRun seen = common(k, sequence);
        if (seeing.rows() <= 0 || seen.rows() <= 0) continue;
        (same ? tiles.squares : tiles.rectangles)
            .push_back({.first_query = query_row + seeing.begin - q.begin,
                        .queries = seeing.rows(),
                        .first_key = key_row + seen.begin - k.begin,
                        .keys = seen.rows(),
                        .causal = same});
      }
    });
  });
  return tiles;
}

AttentionTiles attention_rectangles(std::span<const int64_t> of_queries, std::span<const int64_t> of_keys) {
  PHX_CHECK(of_queries.size() == of_keys.size(), "offsets of {} and {}", of_queries.size(), of_keys.size());
  AttentionTiles tiles;
  for (size_t b = 0; b + 1 < of_queries.size(); ++b) {
    const RowRun seeing = {of_queries[b], of_queries[b + 1]};
    const RowRun seen = {of_keys[b], of_keys[b + 1]};
    if (seeing.rows() == 0 || seen.rows() == 0) continue;
    tiles.rectangles.push_back({.first_query = seeing.begin,
                                .queries = seeing.rows(),
                                .first_key = seen.begin,
                                .keys = seen.rows()});
  }
  return tiles;
}

}  // namespace phalanx
