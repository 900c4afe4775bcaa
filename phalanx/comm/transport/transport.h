// What a way of reaching other ranks must supply: `exchange`, a failure board, and a way to sleep.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "phalanx/base/function_ref.h"
#include "phalanx/comm/call.h"
#include "phalanx/comm/failure.h"
#include "phalanx/comm/rank_page.h"

namespace phalanx {

/// One rank's end of a world. Used by that rank's thread alone.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual FailureBoard& failures() = 0;
  /// The page of a rank of the world, or null where it cannot be seen. Its own can always be.
  virtual RankPage* page(int world_rank) = 0;
  /// True when ranks have to share cores: waiting then gives way at once instead of spinning.
  virtual bool crowded() const = 0;
  /// Its place among the world's ranks on its host, which share the GPUs there.
  virtual int rank_on_host() const { return rank(); }

  /// Called when a group is made, in the same order on all members; what it gives lives as long as the group.
  virtual std::unique_ptr<GroupLink> open_group(const GroupInfo& group);

  /// Starts every part of an exchange (peers are world ranks).
  virtual void post(Exchange& exchange) = 0;
  /// Moves it forward; true when every part is done. CommError: a message does not fit.
  virtual bool poll(Exchange& exchange) = 0;
  /// Forgets an exchange that is given up while unwinding.
  virtual void abandon(Exchange& exchange) noexcept = 0;

  /// Called once in every round of waiting: moves what polls do not reach.
  virtual void progress() {}
  /// Sleeps until something may have happened for this rank, at most `limit`; `look_again` polls everything
  /// that is waited for and says whether anything moved.
  virtual void idle(FunctionRef<bool()> look_again, std::chrono::microseconds limit);
  /// Wakes every rank after the world has failed, or this one has left.
  virtual void wake_all() noexcept;

  // Collectives. The defaults are written over exchange (collectives.h); a transport overrides what it can do
  // faster. The result is the same to the bit, but for sums by NCCL (nccl.h).
  virtual Task<> all_reduce(Call call, Tensor x, Reduce reduce);
  virtual Task<> reduce_scatter(Call call, Tensor x, Tensor out, Reduce reduce);
  virtual Task<> all_gather(Call call, Tensor x, Tensor out);
  virtual Task<> all_to_all(Call call, Tensor x, Tensor out, PooledVector<int64_t> send_rows,
                            PooledVector<int64_t> recv_rows);
  virtual Task<> broadcast(Call call, Tensor x, int root);
  virtual Task<> barrier(Call call);

  /// The result of an operation that has finished is about to be used by what the calling thread queues on
  /// its GPU. Called once or more often.
  virtual void taken(const Call&) {}

  /// True when the ranks of a group can read and write each other's memory.
  virtual bool shares_memory(const GroupInfo& group) const;
  /// x, or a copy of it where the others cannot reach x's memory.
  virtual Tensor shareable(const GroupInfo& group, Tensor x) const;
  /// peers[r] = rank r's x. Only where shares_memory.
  virtual Task<> share(Call call, Tensor x, std::span<Tensor> peers);
};

/// Makes a transport over another one, on the thread of the rank whose it is.
using WrapTransport = std::function<std::unique_ptr<Transport>(std::unique_ptr<Transport>)>;

}  // namespace phalanx
