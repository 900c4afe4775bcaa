// Keys and values of a microbatch that is cut along its sequences: a slice attends to those of the slices
// before it, and backward gives them their gradients before they go back themselves (TeraPipe, Li et al.
// 2021, section 3).
#pragma once

#include <vector>

#include "phalanx/base/check.h"
#include "phalanx/base/pooled.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// Keys [S, G·d] and values [S, G·e], or their gradients. Nothing, if not defined.
struct KvBlock {
  Tensor k_SGd;
  Tensor v_SGd;

  bool defined() const { return k_SGd.defined(); }
};

inline KvBlock empty_like(const KvBlock& block) {
  const auto like = [](const Tensor& t) { return Tensor::empty(t.shape(), t.dtype(), t.device()); };
  return {like(block.k_SGd), like(block.v_SGd)};
}
inline void add_into(const KvBlock& sum, const KvBlock& block) {
  add_into(sum.k_SGd, block.k_SGd);
  add_into(sum.v_SGd, block.v_SGd);
}

/// One layer's, of one microbatch, on a rank: the rows and heads that it has inside attention.
class KvHistory {
 public:
  struct Slice {
    KvBlock kv;
    Tensor offsets;     ///< i64 [B+1] of the sequences' parts in all rows of the slice
    KvBlock gradients;  ///< what the slices behind it have given; nothing before the first
  };

  /// Slices come in order; a second forward of the last one takes its place.
  void keep(int slice, KvBlock kv, Tensor offsets) {
    const auto at = static_cast<size_t>(slice);
    PHX_CHECK(at == slices_.size() || at + 1 == slices_.size(), "slice {} after {}", slice, slices_.size());
    if (at == slices_.size()) slices_.emplace_back();
    slices_[at].kv = std::move(kv);
    slices_[at].offsets = std::move(offsets);
  }
  /// The slices so far.
  std::vector<Slice>& slices() { return slices_; }
  /// Forgets the last one, whose backward is done.
  void drop_last() { slices_.pop_back(); }
  void clear() { slices_.clear(); }

 private:
  std::vector<Slice> slices_;
};

/// The sequences that rows are of.
struct SequenceRows {
  Tensor offsets;                ///< i64 [B+1] of all T rows, on all ranks of cp; of a slice, of its parts
  KvHistory* history = nullptr;  ///< of a slice
  int slice = 0;                 ///< the number of that slice
};

}  // namespace phalanx
