// The KV cache of several sequences, in pages of one pool a layer, whose table lies beside them.
#pragma once

#include <span>
#include <vector>

#include "phalanx/model/layer.h"
#include "phalanx/ops/decode_attention.h"

namespace phalanx {

/// A sequence takes pages from those that are free as it grows. Of a step in which no page is taken the host
/// tells the device nothing, so that such steps can be captured once and replayed.
class PagedKv final : public KvStore {
 public:
  static constexpr int64_t kPageRows = 64;

  /// Room for so many sequences of at most `capacity` positions each.
  PagedKv(int layers, int sequences, int64_t capacity, Device device);

  /// The next batch has so many rows of each sequence, in their order: they get their pages.
  void expect(std::span<const int64_t> rows);
  Tensor attend(int layer, const AttentionRows& rows, const Batch& batch,
                const AttentionConfig& config) override;
  /// Positions held, with those expected.
  int64_t length(int sequence) const { return lengths_[static_cast<size_t>(sequence)]; }
  void clear();

 private:
  struct Layer {
    Tensor k_SGd;
    Tensor v_SGd;
  };
  const Layer& pool(int layer, const AttentionRows& like);

  Device device_;
  int64_t pages_;  // of a layer
  std::vector<Layer> layers_;
  std::vector<int64_t> lengths_;
  std::vector<int32_t> free_;  // pages; the last is taken next
  Tensor host_table_BP_;
  Tensor table_BP_;
  Tensor each_B_;          // i32: 0, 1, …: rows of a batch that has one of each sequence
  Tensor sequences_T_;     // i32: those of the expected batch
  bool was_empty_ = true;  // before it
  bool one_each_ = false;  // it has one row of each sequence
};

}  // namespace phalanx
