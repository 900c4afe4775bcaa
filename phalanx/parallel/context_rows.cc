#include "phalanx/parallel/context_rows.h"

#include <algorithm>

namespace phalanx {

RowRun equal_run(int64_t all, int rank, int ranks) {
  PHX_CHECK(all % ranks == 0, "{} rows over {} ranks", all, ranks);
  const int64_t rows = all / ranks;
  return {rank * rows, (rank + 1) * rows};
}

RowRuns ring_rows(int64_t all, int ring, int ring_rank) {
  const RowRun early = equal_run(all, ring_rank, ring);
  if (ring == 1) return {early};
  // First chunks lie from the start on, last chunks from the end back.
  const int64_t last = early.rows() / 2;
  const int64_t first = early.rows() - last;
  return {{ring_rank * first, (ring_rank + 1) * first},
          {all - (ring_rank + 1) * last, all - ring_rank * last}};
}

RowRuns ContextShare::rows(int64_t all) const {
  const RowRuns runs = ring_rows(all, ring(), ring_rank());
  const RowRun part = equal_run(all / ring(), ulysses_rank(), ulysses);
  RowRuns own;
  int64_t before = 0;  // rows of earlier runs
  for (const RowRun& run : runs) {
    const auto inside = [&](int64_t at) {
      return run.begin + std::clamp<int64_t>(at - before, 0, run.rows());
    };
    own.push_back({inside(part.begin), inside(part.end)});
    before += run.rows();
  }
  std::erase_if(own, [](const RowRun& run) { return run.rows() == 0; });
  return own;
}

Tensor rows_in(const Tensor& all, std::span<const RowRun> runs) {
  if (runs.size() == 1) return all.slice(runs[0].begin, runs[0].end);
  int64_t rows = 0;
  for (const RowRun& run : runs) rows += run.rows();
  const Tensor own = Tensor::empty(all.shape().with_rows(rows), all.dtype(), all.device());
  int64_t at = 0;
  for (const RowRun& run : runs) {
    copy_into(own.slice(at, at + run.rows()), all.slice(run.begin, run.end));
    at += run.rows();
  }
  return own;
}

Tensor offsets_in(const Tensor& offsets, std::span<const RowRun> runs) {
  const Tensor own = Tensor::zeros(offsets.shape(), DType::i64);
  const auto at = offsets.span<const int64_t>();
  const auto to = own.span<int64_t>();
  for (const RowRun& run : runs) {
    for (size_t b = 0; b < at.size(); ++b) to[b] += std::clamp<int64_t>(at[b] - run.begin, 0, run.rows());
  }
  return own;
}

}  // namespace phalanx
