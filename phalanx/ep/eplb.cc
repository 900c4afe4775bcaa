// DeepSeek's EPLB, slot by slot. A layer of E experts and R replicas on D GPUs costs O((E + R) log R).
#include <algorithm>
#include <functional>

#include "phalanx/ep/balance.h"
#include "phalanx/ep/balance_loads.h"

namespace phalanx::ep {
namespace {

// Of items: the pack of each, and its place in the pack.
struct Packed {
  std::vector<int32_t> pack;
  std::vector<int32_t> rank;
};

// Greedy choices by key, without allocation once the vectors are large enough.
struct Heaps {
  std::vector<uint64_t> items;
  std::vector<uint64_t> packs;
  std::vector<float> load;
};

// Items by descending load (stable), each to the least loaded pack that has room, the lowest of equals; with
// one item a pack, item i to pack i.
void balanced_packing(std::span<const float> load, size_t packs, Heaps& heaps, Packed& out) {
  const size_t room = load.size() / packs;
  out.pack.resize(load.size());
  out.rank.assign(load.size(), 0);
  if (room == 1) {
    std::iota(out.pack.begin(), out.pack.end(), 0);
    return;
  }
  heaps.items.clear();
  for (size_t i = 0; i < load.size(); ++i) {
    heaps.items.push_back(heavier_key(load[i], static_cast<uint32_t>(i)));
  }
  std::ranges::sort(heaps.items, std::greater());
  heaps.packs.clear();
  for (size_t p = 0; p < packs; ++p) heaps.packs.push_back(lighter_key(0, static_cast<uint32_t>(p)));
  heaps.load.assign(packs, 0);
  std::vector<uint64_t>& open = heaps.packs;  // those with room, as a heap whose top is the least loaded
  std::vector<int32_t> filled(packs, 0);
  for (const uint64_t key : heaps.items) {
    const uint32_t i = index_of_heavier(key);
    std::ranges::pop_heap(open, std::greater());
    const uint32_t p = index_of_lighter(open.back());
    open.pop_back();
    out.pack[i] = static_cast<int32_t>(p);
    out.rank[i] = filled[p]++;
    heaps.load[p] += load[i];
    if (static_cast<size_t>(filled[p]) == room) continue;
    open.push_back(lighter_key(heaps.load[p], p));
    std::ranges::push_heap(open, std::greater());
  }
}

// One layer after the other.
class Eplb {
 public:
  Eplb(const BalanceSizes& s)
      : sizes_(s), nodes_(s.closed_nodes()), groups_(nodes_ == s.nodes ? s.groups : 1) {}

  // phy2log_R: the expert in each slot; rank_R: which replica of it.
  void place(std::span<const float> weight_E, std::span<int32_t> phy2log_R, std::span<int32_t> rank_R) {
    order_experts(weight_E);
    const auto experts = static_cast<size_t>(sizes_.experts / nodes_);
    const auto replicas = static_cast<size_t>(sizes_.replicas / nodes_);
    for (size_t n = 0; n < static_cast<size_t>(nodes_); ++n) {
      place_node(weight_E, std::span(order_).subspan(n * experts, experts),
                 phy2log_R.subspan(n * replicas, replicas), rank_R.subspan(n * replicas, replicas));
    }
  }

 private:
  // The experts node by node, whole groups packed onto nodes.
  void order_experts(std::span<const float> weight_E) {
    const size_t group_size = weight_E.size() / static_cast<size_t>(groups_);
    loads_.clear();
    for (size_t g = 0; g < static_cast<size_t>(groups_); ++g) {
      const auto group = weight_E.subspan(g * group_size, group_size);
      loads_.push_back(std::accumulate(group.begin(), group.end(), 0.0F));
    }
    balanced_packing(loads_, static_cast<size_t>(nodes_), heaps_, packed_);
    order_.resize(weight_E.size());
    for (size_t g = 0; g < static_cast<size_t>(groups_); ++g) {
      const int64_t place = packed_.pack[g] * (groups_ / nodes_) + packed_.rank[g];
      const auto to = std::span(order_).subspan(static_cast<size_t>(place) * group_size, group_size);
      std::iota(to.begin(), to.end(), static_cast<int32_t>(g * group_size));
    }
  }

  void place_node(std::span<const float> weight_E, std::span<const int32_t> experts,
                  std::span<int32_t> phy2log, std::span<int32_t> rank) {
    replicate(weight_E, experts, phy2log.size());
    loads_.clear();
    for (const int32_t m : expert_of_) {
      const auto i = static_cast<size_t>(m);
      loads_.push_back(weight_E[static_cast<size_t>(experts[i])] / static_cast<float>(copies_[i]));
    }
    balanced_packing(loads_, static_cast<size_t>(sizes_.gpus / nodes_), heaps_, packed_);
    for (size_t i = 0; i < expert_of_.size(); ++i) {
      const auto slot = static_cast<size_t>(packed_.pack[i] * sizes_.slots() + packed_.rank[i]);
      phy2log[slot] = experts[static_cast<size_t>(expert_of_[i])];
      rank[slot] = replica_of_[i];
    }
  }

  // One replica for each of a node's experts in order, then each further one to the largest load a replica.
  void replicate(std::span<const float> weight_E, std::span<const int32_t> experts, size_t replicas) {
    std::vector<uint64_t>& heap = heaps_.items;
    heap.clear();
    for (size_t i = 0; i < experts.size(); ++i) {
      heap.push_back(heavier_key(weight_E[static_cast<size_t>(experts[i])], static_cast<uint32_t>(i)));
    }
    std::ranges::make_heap(heap);
    copies_.assign(experts.size(), 1);
    replica_of_.assign(experts.size(), 0);
    expert_of_.resize(experts.size());
    std::iota(expert_of_.begin(), expert_of_.end(), 0);
    while (expert_of_.size() < replicas) {
      std::ranges::pop_heap(heap);
      const uint32_t i = index_of_heavier(heap.back());
      expert_of_.push_back(static_cast<int32_t>(i));
      replica_of_.push_back(copies_[i]++);
      const float load = weight_E[static_cast<size_t>(experts[i])] / static_cast<float>(copies_[i]);
      heap.back() = heavier_key(load, i);
      std::ranges::push_heap(heap);
    }
  }

  BalanceSizes sizes_;
  int64_t nodes_;
  int64_t groups_;
  Heaps heaps_;
  Packed packed_;
  std::vector<float> loads_;
  std::vector<int32_t> order_;       // [E]: the experts, node by node
  std::vector<int32_t> copies_;      // of each expert of a node
  std::vector<int32_t> expert_of_;   // of each replica of a node, before they are packed
  std::vector<int32_t> replica_of_;  // which of its expert's replicas it is
};

}  // namespace

ReplicaPlacement rebalance_experts(std::span<const float> weight_LE, const BalanceSizes& sizes) {
  check_loads(weight_LE, sizes);
  Eplb eplb(sizes);
  std::vector<int32_t> phy2log(static_cast<size_t>(sizes.layers * sizes.replicas));
  std::vector<int32_t> rank(phy2log.size());
  const auto replicas = static_cast<size_t>(sizes.replicas);
  for (int64_t l = 0; l < sizes.layers; ++l) {
    const size_t at = static_cast<size_t>(l) * replicas;
    eplb.place(loads_of_layer(weight_LE, sizes, l), std::span(phy2log).subspan(at, replicas),
               std::span(rank).subspan(at, replicas));
  }
  ReplicaPlacement p = placement_of(sizes, std::move(phy2log));
  for (size_t i = 0; i < rank.size(); ++i) {  // EPLB lists replicas in the order it made them
    const auto expert =
        static_cast<size_t>(static_cast<int64_t>(i) / sizes.replicas * sizes.experts + p.phy2log[i]);
    p.log2phy[expert * static_cast<size_t>(p.most_copies) + static_cast<size_t>(rank[i])] =
        static_cast<int32_t>(static_cast<int64_t>(i) % sizes.replicas);
  }
  return p;
}

}  // namespace phalanx::ep
