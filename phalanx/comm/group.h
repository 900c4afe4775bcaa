// A rank's view of some ranks: collectives and batched point-to-point messages, all asynchronous.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "phalanx/comm/engine.h"

namespace phalanx {

/// Every member calls the same operations in the same order; a call that does not match the others' is an
/// error (CommError) on every rank. Tensors given to a call belong to it until its Work has finished.
class Group {
 public:
  /// `info` has name, members and rank; the engine outlives the group, the group its operations.
  Group(Engine& engine, GroupInfo info) : engine_(&engine), info_(engine.open_group(std::move(info))) {}
  Group(Group&&) = default;
  Group& operator=(Group&& other) noexcept {
    std::swap(engine_, other.engine_);
    std::swap(info_, other.info_);
    std::swap(sequence_, other.sequence_);
    return *this;
  }
  ~Group() {
    if (info_) engine_->close_group(*info_);
  }

  int rank() const { return info_->rank; }
  int size() const { return info_->size(); }
  const std::string& name() const { return info_->name; }
  const GroupInfo& info() const { return *info_; }
  /// This rank's place among the world's ranks on its host.
  int rank_on_host() const { return engine_->transport().rank_on_host(); }
  /// What this rank's calls have moved so far: of one kind, or all.
  const Traffic& traffic(Fingerprint::Kind kind) const { return info_->traffic[static_cast<size_t>(kind)]; }
  Traffic traffic() const;
  /// Seconds that this rank has waited for others so far, in all its groups.
  double waited() const { return engine_->waited(); }
  /// This rank's last operations, of all groups.
  const FlightRecorder& recorder() const { return engine_->recorder(); }

  /// In place; gives x. All ranks get the same bits, on every transport: sums run in rank order. But NCCL's,
  /// of tensors on GPUs, run in its own order (transport/nccl.h).
  Work all_reduce(Tensor x, Reduce reduce = Reduce::sum);
  /// x [R·n, …] → [n, …]: this rank's part of the reduced tensor.
  Work reduce_scatter(Tensor x, Reduce reduce = Reduce::sum);
  /// x [n, …] → [R·n, …], in rank order.
  Work all_gather(Tensor x);
  /// Rows of x, cut by send_rows[R] in rank order, go to their ranks; gives the received rows in rank order.
  /// The caller knows recv_rows[R] (an all_to_all of the counts, say). They come to the first rows of `into`,
  /// if given, else to a new tensor.
  Work all_to_all(Tensor x, std::span<const int64_t> send_rows, std::span<const int64_t> recv_rows,
                  const Tensor& into = {});
  /// In place; gives x.
  Work broadcast(Tensor x, int root);
  /// A batch of sends and receives; peers are ranks of this group. Every member calls it, if only with an
  /// empty batch.
  Work exchange(PooledVector<P2P> messages);
  Work barrier();

  /// True when the ranks of this group can read and write each other's memory.
  bool shares_memory() const { return engine_->transport().shares_memory(*info_); }
  /// The most ranks G for which ranks 0…G − 1, G…2G − 1, … each share memory, as those of a host do; 1: none
  /// do.
  int ranks_of_node() const;
  /// x if it can be shared, else a copy that can: between processes those tensors can that the calling rank's
  /// allocator has made (not those from before the ranks, from files, or from a scope of its own).
  Tensor shareable(Tensor x) const { return engine_->transport().shareable(*info_, std::move(x)); }
  /// peers[r] = rank r's x, of any shape, to read and write in place; gives an empty tensor. Nothing is
  /// moved. A tensor lives as long as any rank refers to it; peers lie somewhere until the Work has finished.
  /// Only where shares_memory, and of a shareable x.
  Work share(Tensor x, std::span<Tensor> peers);
  /// A barrier: all ranks have done with each other's tensors what they wanted. Counts the bytes that this
  /// one gave to them (sent) and took from them.
  Work unshare(int64_t sent, int64_t received);

  /// An operation of the caller's making: task(call) gives its coroutine, which runs to its first wait now,
  /// waits for CommWaitables alone, and says what it moves (Call::count). Gives `result`, which has `bytes`
  /// for the recorder. Every member calls it.
  Work operate(const Fingerprint& fingerprint, FunctionRef<Task<>(Call)> task, Tensor result, size_t bytes);
  /// That rank of this group need not call its operations any more (or again has to): its absence is no
  /// error. Operations that wait for it still do; this is for those that the caller has made.
  void excuse(int rank, bool excused);

  /// The group of `members` (ranks of this group, ascending; this rank among them). Every member of the new
  /// group calls it with the same name and members; other ranks need not know.
  Group subgroup(std::string name, std::span<const int> members) const;

 private:
  Call next_call(const Fingerprint& fingerprint);

  Engine* engine_;
  std::unique_ptr<GroupInfo> info_;  // null after a move; operations in flight refer to it
  uint64_t sequence_ = 0;
};

}  // namespace phalanx
