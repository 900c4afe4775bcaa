// Experts with several replicas: which physical slot holds which expert, and which of a token's replicas it
// goes to.
#pragma once

#include "phalanx/base/pooled.h"
#include "phalanx/ep/expert_map.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx::ep {

/// One layer's placement: slots 0…P−1 lie in runs on the ranks, and each holds a replica of an expert
/// (ReplicaPlacement::slots_of_layer).
class ReplicaMap {
 public:
  /// Error: the slots of phy2log are not as many as the map has, name an expert below 0 or from `experts` up,
  /// or leave one without a replica.
  ReplicaMap(std::span<const int32_t> phy2log, ExpertMap slots, int64_t experts);

  int64_t experts() const { return std::ssize(first_) - 1; }
  const ExpertMap& slots() const { return slots_; }
  std::span<const int32_t> phy2log() const { return phy2log_; }
  /// The slots that hold an expert, ascending.
  std::span<const int32_t> replicas(int64_t expert) const {
    const auto e = static_cast<size_t>(expert);
    return std::span(slot_).subspan(static_cast<size_t>(first_[e]),
                                    static_cast<size_t>(first_[e + 1] - first_[e]));
  }
  friend bool operator==(const ReplicaMap& a, const ReplicaMap& b) {
    return a.phy2log_ == b.phy2log_ && a.first_ == b.first_;
  }

 private:
  ExpertMap slots_;
  std::vector<int32_t> phy2log_;
  std::vector<int64_t> first_;  // [experts + 1], into slot_
  std::vector<int32_t> slot_;   // [P], by expert
};

/// [P]: how many of the tokens that choose an expert (tokens_E, of all ranks) each of its slots gets. From an
/// even start the replicas of one expert after the other are levelled, those on the fullest ranks getting
/// less, until nothing changes or a fixed number of rounds is over: then mostly no token could go to a
/// replica on a rank that has two fewer.
PooledVector<int64_t> share_tokens(const ReplicaMap& map, std::span<const int64_t> tokens_E);

/// topk_idx i64 [T, K] of this rank's tokens, experts → slots; −1 stays. tokens_RE: how many tokens of each
/// rank choose each expert. A rank's tokens stay with replicas of its own as far as those have room
/// (share_tokens); the others are handed out by rank, then token. All ranks decide alike, from tokens_RE
/// alone.
Tensor choose_replicas(const Tensor& topk_idx_TK, const ReplicaMap& map, const Tensor& tokens_RE, int rank);

/// i64 [1, E]: how often each expert is chosen.
Tensor count_choices(const Tensor& topk_idx_TK, int64_t experts);

}  // namespace phalanx::ep
