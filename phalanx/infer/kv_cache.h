// The KV cache of one sequence: pages that fill up.
#pragma once

#include <vector>

#include "phalanx/model/layer.h"

namespace phalanx {

/// A page holds kPageRows rows of one layer. Pages are taken as the sequence grows and go back when the cache
/// is cleared or destroyed; the last segment of a layer is the filled part of its last page.
class KvCache final : public SegmentStore {
 public:
  static constexpr int64_t kPageRows = 64;

  explicit KvCache(int layers) : layers_(static_cast<size_t>(layers)) {}

  std::span<const KvSegment> append(int layer, const Tensor& k_TGd, const Tensor& v_TGd) override;
  /// Positions held; equal for all layers between tokens.
  int64_t length() const { return layers_.empty() ? 0 : layers_[0].length; }
  void clear();

 private:
  struct Layer {
    std::vector<KvSegment> pages;     // whole pages
    std::vector<KvSegment> segments;  // their filled rows
    int64_t length = 0;
  };
  std::vector<Layer> layers_;
};

}  // namespace phalanx
