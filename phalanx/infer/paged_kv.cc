#include "phalanx/infer/paged_kv.h"

#include <algorithm>
#include <numeric>

namespace phalanx {

PagedKv::PagedKv(int layers, int sequences, int64_t capacity, Device device)
    : device_(device), layers_(static_cast<size_t>(layers)), lengths_(static_cast<size_t>(sequences)) {
  const int64_t pages = (capacity + kPageRows - 1) / kPageRows;  // of a sequence
  pages_ = sequences * pages;
  host_table_BP_ = Tensor::empty({sequences, pages}, DType::i32);
  table_BP_ = Tensor::empty({sequences, pages}, DType::i32, device);
  const Tensor each = Tensor::empty({sequences}, DType::i32);
  std::iota(each.data<int32_t>(), each.data<int32_t>() + sequences, 0);
  each_B_ = each.to(device);
  clear();
}

void PagedKv::clear() {
  std::ranges::fill(lengths_, 0);
  free_.resize(static_cast<size_t>(pages_));
  std::iota(free_.rbegin(), free_.rend(), 0);
  std::ranges::fill(host_table_BP_.span<int32_t>(), -1);
  copy_into(table_BP_, host_table_BP_);
}

void PagedKv::expect(std::span<const int64_t> rows) {
  PHX_CHECK(rows.size() == lengths_.size(), "rows of {} sequences, there are {}", rows.size(),
            lengths_.size());
  const int64_t of_sequence = host_table_BP_.dim(1);
  was_empty_ = std::ranges::all_of(lengths_, [](int64_t n) { return n == 0; });
  bool taken = false;
  for (size_t b = 0; b < rows.size(); ++b) {
    int64_t page = (lengths_[b] + kPageRows - 1) / kPageRows;
    lengths_[b] += rows[b];
    PHX_CHECK(lengths_[b] <= of_sequence * kPageRows, "{} positions of a sequence, there is room for {}",
              lengths_[b], of_sequence * kPageRows);
    for (; page * kPageRows < lengths_[b]; ++page) {
      host_table_BP_.data<int32_t>()[static_cast<int64_t>(b) * of_sequence + page] = free_.back();
      free_.pop_back();
      taken = true;
    }
  }
  if (taken) copy_into(table_BP_, host_table_BP_);
  one_each_ = std::ranges::all_of(rows, [](int64_t n) { return n == 1; });
  if (one_each_) {
    sequences_T_ = each_B_;
    return;
  }
  const Tensor sequences = Tensor::empty({std::reduce(rows.begin(), rows.end())}, DType::i32);
  int32_t* at = sequences.data<int32_t>();
  for (size_t b = 0; b < rows.size(); ++b) at = std::fill_n(at, rows[b], static_cast<int32_t>(b));
  sequences_T_ = sequences.to(device_);
}

const PagedKv::Layer& PagedKv::pool(int layer, const AttentionRows& like) {
  Layer& l = layers_[static_cast<size_t>(layer)];
  if (!l.k_SGd.defined()) {
    const auto rows_like = [&](const Tensor& t) {
      return Tensor::zeros(t.shape().with_rows(pages_ * kPageRows), t.dtype(), device_);
    };
    l = {rows_like(like.k_TGd), rows_like(like.v_TGd)};
  }
  return l;
}

Tensor PagedKv::attend(int layer, const AttentionRows& rows, const Batch& batch,
                       const AttentionConfig& config) {
  const Layer& l = pool(layer, rows);
  const KvPages pages = {l.k_SGd, l.v_SGd, table_BP_, kPageRows};
  const KvPlaces places = {sequences_T_, batch.positions};
  if (was_empty_) {  // what a row sees is all in the batch
    turn(rows, batch.positions, config.head_dim);
    append_to_pages(pages, places, rows.k_TGd, rows.v_TGd);
    return attention(rows.q_THd, rows.k_TGd, rows.v_TGd, batch.sequence_offsets, config).y_THd;
  }
  if (one_each_) return append_and_attend(pages, places, rows, config);
  turn_and_append(pages, places, rows, config.head_dim);
  return attention_over_pages(rows.q_THd, places, pages, config);
}

}  // namespace phalanx
