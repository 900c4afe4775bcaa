#include "phalanx/model/layer.h"

#include <algorithm>
#include <numeric>

#include "phalanx/base/pooled.h"
#include "phalanx/ops/cross_entropy.h"

namespace phalanx {
namespace {

// The values (i32) so many places on in each sequence; `behind` where it has ended.
Tensor places_on(const Tensor& values, int64_t places, std::span<const int64_t> offsets, int32_t behind) {
  const Tensor out = Tensor::empty(values.shape(), DType::i32);
  const auto from = values.span<const int32_t>();
  const auto to = out.span<int32_t>();
  std::ranges::fill(to, behind);
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    for (int64_t i = offsets[s]; i + places < offsets[s + 1]; ++i) {
      to[static_cast<size_t>(i)] = from[static_cast<size_t>(i + places)];
    }
  }
  return out;
}

// What a batch has of each of its tokens.
PooledVector<Tensor*> of_each_token(Batch& batch) {
  PooledVector<Tensor*> all = {&batch.tokens, &batch.targets, &batch.positions, &batch.rows};
  for (Ahead& ahead : batch.ahead) {
    all.push_back(&ahead.tokens);
    all.push_back(&ahead.targets);
  }
  return all;
}

}  // namespace

void set_sequences(Batch& batch, std::span<const int64_t> starts) {
  const auto sequences = static_cast<int64_t>(starts.size());
  batch.sequence_offsets = Tensor::empty({sequences + 1}, DType::i64);
  const auto offsets = batch.sequence_offsets.span<int64_t>();
  std::ranges::copy(starts, offsets.begin());
  offsets.back() = batch.tokens.rows();
  batch.positions = Tensor::empty({batch.tokens.rows()}, DType::i32);
  auto* positions = batch.positions.data<int32_t>();
  for (size_t s = 0; s < starts.size(); ++s) std::iota(positions + offsets[s], positions + offsets[s + 1], 0);
}

Batch with_ahead(Batch batch, int depths) {
  const auto offsets = batch.sequence_offsets.span<const int64_t>();
  for (int64_t places = 1; places <= depths; ++places) {
    const Tensor tokens = places_on(batch.tokens, places, offsets, 0);
    batch.ahead.push_back({tokens, places_on(batch.targets, places, offsets, kIgnore)});
  }
  return batch;
}

Batch with_rows(Batch batch, const RowRuns& rows) {
  for (Tensor* t : of_each_token(batch)) *t = rows_in(*t, rows);
  return batch;
}

Batch on_device(Batch batch, Device device) {
  for (Tensor* t : of_each_token(batch)) *t = t->to(device);
  return batch;
}

Batch own_tokens(Batch batch, const ContextShare& share) {
  const RowRuns rows = share.rows(batch.tokens.rows());
  return with_rows(std::move(batch), rows);
}

Pass pass_of_layer(Pass pass, int layer) {
  const Recompute what = pass.recompute.of(layer);
  pass.recompute.what = pass.training ? what : Recompute::none;
  return pass;
}

Task<> passed(DataParallel* data, DataParallel::Part* part, Tape& tape) {
  tape.defer([data, part] { data->passed(*part); });
  co_await data->settle(1);
}

}  // namespace phalanx
