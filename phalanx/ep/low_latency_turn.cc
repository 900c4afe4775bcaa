#include "phalanx/ep/low_latency_turn.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "phalanx/base/parallel_for.h"
#include "phalanx/base/pooled.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/blocks.h"
#include "phalanx/ops/stream_copy.h"

namespace phalanx::ep {
namespace {

// As past_caches (layout.h).
bool past_caches(int64_t rows, size_t bytes) { return static_cast<size_t>(rows) * bytes >= size_t{8} << 20; }

void copy_rows(std::byte* to, const std::byte* from, size_t bytes, bool stream) {
  if (stream) {
    stream_copy(to, from, bytes);
  } else if (bytes > 0) {
    std::memcpy(to, from, bytes);
  }
}

// Copies rows of `bytes` bytes, each with `scale_bytes` more behind it, from a source to their places:
// `first_row[e]` is the first of set e, and rows of one set lie one behind the other. Also notes in `source`
// which token each is.
struct Spread {
  const SourceRows& from;
  std::span<const int64_t> first_row;
  size_t bytes;
  size_t scale_bytes;
  bool stream;
  std::byte* to;
  std::byte* scales;
  int32_t* source;

  // Tokens begin … end − 1, of which `before` tokens that are in some set come before the first.
  void tokens(int64_t begin, int64_t end, int64_t before) const {
    PooledVector<int64_t> next(first_row.begin(), first_row.end());
    for (size_t e = 0; e < next.size(); ++e) {
      next[e] += from.chosen.count_before(static_cast<int64_t>(e), begin);
    }
    const std::byte* row =
        from.first + static_cast<size_t>(from.packed ? before : begin) * (bytes + scale_bytes);
    for (int64_t t = begin; t < end; ++t) {
      bool chosen = false;
      for (size_t e = 0; e < next.size(); ++e) {
        if (!from.chosen.has(static_cast<int64_t>(e), t)) continue;
        chosen = true;
        const auto place = static_cast<size_t>(next[e]++);
        source[place] = static_cast<int32_t>(t);
        copy_rows(to + place * bytes, row, bytes, stream);
        copy_rows(scales + place * scale_bytes, row + bytes, scale_bytes, false);
      }
      if (chosen || !from.packed) row += bytes + scale_bytes;
    }
    stream_fence();
  }
};

}  // namespace

void LowLatencyTurn::begin() { std::ranges::fill(count_L.span<int32_t>(), 0); }

void LowLatencyTurn::place(int source, const SourceRows& rows) {
  const int64_t experts = recv_LMH.dim(0);
  const int64_t slots = recv_LMH.dim(1);
  const int64_t ranks = range_LR.dim(1);
  const auto row_bytes = [](const Tensor& t) {
    return t.defined() ? static_cast<size_t>(t.dim(2)) * dtype_size(t.dtype()) : 0;
  };
  const size_t bytes = row_bytes(recv_LMH);
  const size_t scale_bytes = row_bytes(scales_LMS);
  int32_t* const count = count_L.data<int32_t>();
  PooledVector<int64_t> first_row(static_cast<size_t>(experts));
  int64_t all = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t n = rows.chosen.count(e);
    PHX_CHECK(count[e] + n <= slots, "{} rows of expert {}, which has {} slots", count[e] + n, e, slots);
    range_LR.data<int64_t>()[e * ranks + source] = int64_t{count[e]} << 32 | n;
    first_row[static_cast<size_t>(e)] = e * slots + count[e];
    count[e] += static_cast<int32_t>(n);
    all += n;
  }
  if (all == 0) return;
  const TraceSpan span(TraceKind::elementwise, "place", 2 * static_cast<size_t>(all) * (bytes + scale_bytes));
  const int64_t words = chosen_EW.dim(1);
  PooledVector<uint64_t> any(static_cast<size_t>(words), 0);
  const TokenSets in_some(any.data(), 1, words);
  rows.chosen.unite_into(in_some);
  std::byte* const to = recv_LMH.raw();
  const bool stream = past_caches(all * ranks, bytes) && can_stream(to, bytes);
  std::byte* const scales = scale_bytes > 0 ? scales_LMS.raw() : nullptr;
  int32_t* const token_of = source_LM.data<int32_t>();
  const Spread spread = {rows, first_row, bytes, scale_bytes, stream, to, scales, token_of};
  parallel_for(64 * words, block_rows(recv_LMH.dim(2)), [&](int64_t begin, int64_t end) {
    spread.tokens(begin, end, in_some.count_before(0, begin));
  });
}

void LowLatencyTurn::keep_outputs(const Tensor& y) {
  std::byte* const to = output_LMH.raw();
  if (y.raw() == to) return;
  const int64_t slots = output_LMH.dim(1);
  const size_t bytes = static_cast<size_t>(output_LMH.dim(2)) * dtype_size(output_LMH.dtype());
  const auto count = count_L.span<int32_t>();
  const int64_t all = std::accumulate(count.begin(), count.end(), int64_t{0});
  const TraceSpan span(TraceKind::elementwise, "keep_outputs", 2 * static_cast<size_t>(all) * bytes);
  const bool stream = past_caches(all, bytes) && can_stream(to, bytes);
  parallel_for(output_LMH.dim(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      const size_t at = static_cast<size_t>(e * slots) * bytes;
      copy_rows(to + at, y.raw() + at, static_cast<size_t>(count[static_cast<size_t>(e)]) * bytes, stream);
    }
    stream_fence();
  });
}

void LowLatencyTurn::skip(int source) {
  const int64_t ranks = range_LR.dim(1);
  for (int64_t e = 0; e < range_LR.dim(0); ++e) {
    range_LR.data<int64_t>()[e * ranks + source] = int64_t{count_L.data<int32_t>()[e]} << 32;
  }
}

}  // namespace phalanx::ep
