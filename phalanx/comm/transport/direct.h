// Collectives between ranks that share an address space: each rank publishes where its tensors lie, and the
// work is done in place, in chunks that any rank may take. Whoever is awake does it: a rank without a core
// delays nobody once it has published. Small tensors are copied into the publication itself, and every rank
// does its own work after one wait.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "phalanx/comm/transport/transport.h"

namespace phalanx::direct {

class Board;

/// The boards of all groups of a world; shared by its ranks.
class Registry {
 public:
  Registry();
  ~Registry();
  /// A rank's link to the board of `group`; the board goes when every member has closed its link.
  std::unique_ptr<GroupLink> open(const GroupInfo& group, Transport& transport);

 private:
  friend class Link;
  void close(uint64_t group) noexcept;

  std::mutex mutex_;
  std::map<uint64_t, std::unique_ptr<Board>> boards_;
};

// Transport's collectives, for groups of two and more that were opened at a Registry. Bytes count as in
// collectives.h, but for broadcast: the root sends S·(R−1). Each moves, in memory: all_reduce reads R·S and
// writes R·S; reduce_scatter reads R·S, writes S; all_gather reads S, writes R·S.
Task<> all_reduce(Call call, Tensor x, Reduce reduce);
Task<> reduce_scatter(Call call, Tensor x, Tensor out, Reduce reduce);
Task<> all_gather(Call call, Tensor x, Tensor out);
Task<> all_to_all(Call call, Tensor x, Tensor out, PooledVector<int64_t> send_rows,
                  PooledVector<int64_t> recv_rows);
Task<> broadcast(Call call, Tensor x, int root);
Task<> barrier(Call call);
Task<> share(Call call, Tensor x, std::span<Tensor> peers);

}  // namespace phalanx::direct
