#include "phalanx/ep/replica_map.h"

#include <algorithm>
#include <iterator>
#include <numeric>

#include "phalanx/base/error.h"

namespace phalanx::ep {
namespace {

using Counts = PooledVector<int64_t>;

constexpr int kRounds = 8;

// Gives `tokens` to the replicas of one expert so that the fullest of their ranks is as low as can be: the
// lowest are filled up to one level. What is left below a whole level goes to the lowest, and of several
// replicas on a rank the first gets all.
void level(const ReplicaMap& map, std::span<const int32_t> replicas, int64_t tokens, Counts& of_rank,
           Counts& of_slot) {
  const auto same_rank = [&](int32_t a, int32_t b) { return map.slots().owner(a) == map.slots().owner(b); };
  PooledVector<int32_t> order;  // slots ascend, and so do their ranks
  std::ranges::unique_copy(replicas, std::back_inserter(order), same_rank);
  const auto load = [&](int32_t slot) -> int64_t& {
    return of_rank[static_cast<size_t>(map.slots().owner(slot))];
  };
  std::ranges::stable_sort(order, {}, [&](int32_t slot) { return load(slot); });
  size_t n = 1;  // ranks that are filled
  int64_t sum = load(order[0]);
  while (n < order.size() && (tokens + sum) / static_cast<int64_t>(n) > load(order[n])) {
    sum += load(order[n++]);
  }
  const auto filled = static_cast<int64_t>(n);
  const int64_t height = (tokens + sum) / filled;
  int64_t rest = (tokens + sum) % filled;
  for (size_t i = 0; i < n; ++i) {
    const int64_t share = height - load(order[i]) + (rest-- > 0 ? 1 : 0);
    of_slot[static_cast<size_t>(order[i])] = share;
    load(order[i]) += share;
  }
}

}  // namespace

ReplicaMap::ReplicaMap(std::span<const int32_t> phy2log, ExpertMap slots, int64_t experts)
    : slots_(std::move(slots)),
      phy2log_(phy2log.begin(), phy2log.end()),
      first_(static_cast<size_t>(experts) + 1, 0),
      slot_(phy2log.size()) {
  if (std::ssize(phy2log) != slots_.experts()) {
    throw Error("{} slots are placed, the ranks have {}", phy2log.size(), slots_.experts());
  }
  for (const int32_t e : phy2log) {
    if (e < 0 || e >= experts) throw Error("a slot holds expert {}, there are {}", e, experts);
    ++first_[static_cast<size_t>(e) + 1];
  }
  for (size_t e = 0; e < static_cast<size_t>(experts); ++e) {
    if (first_[e + 1] == 0) throw Error("expert {} has no replica", e);
    first_[e + 1] += first_[e];
  }
  std::vector<int64_t> next = first_;
  for (size_t p = 0; p < phy2log.size(); ++p) {
    slot_[static_cast<size_t>(next[static_cast<size_t>(phy2log[p])]++)] = static_cast<int32_t>(p);
  }
}

Counts share_tokens(const ReplicaMap& map, std::span<const int64_t> tokens_E) {
  Counts of_slot(map.phy2log().size(), 0);
  Counts of_rank(static_cast<size_t>(map.slots().ranks()), 0);
  PooledVector<int64_t> several;  // experts with more than one replica, the heaviest first
  for (int64_t e = 0; e < map.experts(); ++e) {
    const auto replicas = map.replicas(e);
    const int64_t tokens = tokens_E[static_cast<size_t>(e)];
    if (replicas.size() > 1) several.push_back(e);
    for (size_t i = 0; i < replicas.size(); ++i) {
      const auto n = static_cast<int64_t>(replicas.size());
      const int64_t share = tokens / n + (static_cast<int64_t>(i) < tokens % n ? 1 : 0);
      of_slot[static_cast<size_t>(replicas[i])] = share;
      of_rank[static_cast<size_t>(map.slots().owner(replicas[i]))] += share;
    }
  }
  const auto tokens = [&](int64_t e) { return tokens_E[static_cast<size_t>(e)]; };
  std::ranges::stable_sort(several, std::ranges::greater(), tokens);
  for (int round = 0; round < kRounds; ++round) {
    const Counts before = of_slot;
    for (const int64_t e : several) {
      for (const int32_t slot : map.replicas(e)) {
        int64_t& share = of_slot[static_cast<size_t>(slot)];
        of_rank[static_cast<size_t>(map.slots().owner(slot))] -= share;
        share = 0;
      }
      level(map, map.replicas(e), tokens(e), of_rank, of_slot);
    }
    if (of_slot == before) break;
  }
  return of_slot;
}

Tensor count_choices(const Tensor& topk_idx, int64_t experts) {
  Tensor out = Tensor::zeros({1, experts}, DType::i64);
  const auto counts = out.span<int64_t>();
  for (const int64_t e : topk_idx.span<const int64_t>()) {
    if (e >= 0) ++counts[static_cast<size_t>(e)];
  }
  return out;
}

namespace {

// Of the tokens of `rank` that choose an expert, how many go to each of its replicas: first every rank's own
// replicas take its tokens, then ranks and replicas are matched in their order.
Counts shares_of_rank(const ReplicaMap& map, int64_t expert, Counts room, const Tensor& tokens_RE, int rank) {
  const auto replicas = map.replicas(expert);
  const auto ranks = static_cast<size_t>(map.slots().ranks());
  Counts left(ranks);
  for (size_t r = 0; r < ranks; ++r) {
    left[r] = tokens_RE.data<int64_t>()[static_cast<int64_t>(r) * map.experts() + expert];
  }
  Counts mine(replicas.size(), 0);
  const auto give = [&](size_t r, size_t i) {
    const int64_t n = std::min(left[r], room[i]);
    left[r] -= n;
    room[i] -= n;
    if (static_cast<int>(r) == rank) mine[i] += n;
  };
  for (size_t i = 0; i < replicas.size(); ++i) give(static_cast<size_t>(map.slots().owner(replicas[i])), i);
  size_t i = 0;
  for (size_t r = 0; r < ranks; ++r) {
    while (left[r] > 0 && i < replicas.size()) {
      give(r, i);
      if (left[r] > 0) ++i;
    }
  }
  return mine;
}

}  // namespace

Tensor choose_replicas(const Tensor& topk_idx, const ReplicaMap& map, const Tensor& tokens_RE, int rank) {
  const int64_t experts = map.experts();
  Counts tokens_E(static_cast<size_t>(experts), 0);
  for (int64_t i = 0; i < tokens_RE.numel(); ++i) {
    tokens_E[static_cast<size_t>(i % experts)] += tokens_RE.data<int64_t>()[i];
  }
  const Counts of_slot = share_tokens(map, tokens_E);
  PooledVector<Counts> left(
      static_cast<size_t>(experts));  // of each expert's replicas, for this rank's tokens
  for (int64_t e = 0; e < experts; ++e) {
    Counts room;
    for (const int32_t slot : map.replicas(e)) room.push_back(of_slot[static_cast<size_t>(slot)]);
    left[static_cast<size_t>(e)] = shares_of_rank(map, e, std::move(room), tokens_RE, rank);
  }
  Tensor out = Tensor::empty(topk_idx.shape(), DType::i64);
  const auto idx = topk_idx.span<const int64_t>();
  for (size_t i = 0; i < idx.size(); ++i) {
    int64_t& slot = out.data<int64_t>()[i];
    slot = -1;
    if (idx[i] < 0) continue;
    Counts& shares = left[static_cast<size_t>(idx[i])];
    const auto next = std::ranges::find_if(shares, [](int64_t n) { return n > 0; });
    PHX_CHECK(next != shares.end(), "expert {} is chosen more often than was counted", idx[i]);
    --*next;
    slot = map.replicas(idx[i])[static_cast<size_t>(next - shares.begin())];
  }
  return out;
}

}  // namespace phalanx::ep
