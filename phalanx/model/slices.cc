#include "phalanx/model/slices.h"

namespace phalanx {
namespace {

Batch slice_of(const Batch& whole, int64_t context, int slice, int slices) {
  PHX_CHECK(context % slices == 0 && whole.tokens.rows() % context == 0, "{} slices of {} rows in {}s",
            slices, whole.tokens.rows(), context);
  const int64_t length = context / slices;
  RowRuns rows;
  for (int64_t at = slice * length; at < whole.tokens.rows(); at += context)
    rows.push_back({at, at + length});
  Batch batch = with_rows(whole, rows);
  batch.sequence_offsets = offsets_in(whole.sequence_offsets, rows);
  batch.slice = slice;
  batch.whole_offsets = whole.sequence_offsets;
  return batch;
}

}  // namespace

void add_slices(std::vector<Batch>& batches, const Batch& whole, int64_t context, int slices,
                const ContextShare& share) {
  for (int s = 0; s < slices; ++s) {
    batches.push_back(own_tokens(slices == 1 ? whole : slice_of(whole, context, s, slices), share));
  }
}

}  // namespace phalanx
