// Dispatch and combine: rows to the ranks that own their experts, and back. Vocabulary and row rules are
// DeepEP's.
#pragma once

#include <memory>
#include <optional>
#include <thread>

#include "phalanx/ep/expansion.h"
#include "phalanx/ep/replica_map.h"
#include "phalanx/ep/slices.h"
#include "phalanx/ep/two_level.h"

namespace phalanx::ep {

/// What combine (and a cached dispatch) needs of a dispatch. May be used any number of times, with its
/// buffer.
struct Handle {
  Route route;
  PooledVector<int64_t> slice_rows;    // [etp]: what each rank with a slice of the same experts received
  int64_t capacity = 0;                // of the received rows
  std::optional<Expansion> expansion;  // none: rows are compact
  uint64_t buffer = 0;                 // the number of its buffer
};

/// Rows, what came with them, and what leads back.
struct Dispatched {
  Rows x_RD;          // compact or expanded (DispatchOptions)
  Tensor scales_RS;   // undefined where none were given, as weights
  Rows topk_idx_RK;   // i64, of the compact rows: local experts, −1 for those elsewhere
  Tensor weights_RK;  // of those, 0 elsewhere; expanded: [R], of each row
  Tensor sources_R2;  // i64, if asked for, of the compact rows: the rank of ep that it is from, and its token
  ExpertRows expert_rows;
  Handle handle;
};

/// Rows, of a cached dispatch say.
struct Redispatched {
  Rows x_RD;
  Tensor scales_RS;
};

/// Sums over ranks; weights are routed back to the slots they came from.
struct Combined {
  Tensor x_TD;
  Tensor weights_TK;
};

struct CombineOptions {
  /// Of the compact rows [R, K], or of the expanded ones [R]; undefined: none travel.
  Tensor weights = {};
  /// Up to two tensors [T, D] of the rows' dtype, summed before the rows: a residual, a shared expert's
  /// output.
  PooledVector<Tensor> bias = {};
  /// Rows go in f8e4m3 with f32 scales (ops/quantize.h), in about half the bytes of bf16; not f64.
  bool quantize = false;
  /// Where sums go, and weights; undefined: to new tensors.
  Combined into = {};
};

/// How rows move.
enum class Way : uint8_t {
  automatic,  ///< directly where all ranks share memory, else by phase where there are nodes, else by
              ///< messages
  direct,     ///< into each other's memory (transfer.h)
  messages,
  two_level,  ///< one copy of a token to a node, from where it is passed on (two_level.h)
  by_size,    ///< on two levels where a rank has more than kTwoLevelsPay bytes of rows, else by messages
};

/// What dispatches are for, which says how rows move between nodes: sums on two levels are rounded once more,
/// so that by size their last bits depend on how many tokens there are.
enum class Phase : uint8_t {
  any,      ///< by size
  prefill,  ///< many tokens, or training: on two levels, for fewer bytes
  decode,   ///< few tokens: by messages, for less delay
};

inline constexpr int kFindNodes = -1;

struct BufferOptions {
  /// Ranks with slices of the same experts; null: none.
  Group* etp = nullptr;
  /// Dispatch also refuses tokens that name an expert twice, and weights that are not numbers.
  bool checked = false;
  Way way = Way::automatic;
  Phase phase = Phase::any;
  /// Ranks n·G … n·G + G − 1 are a node, whose ranks share memory; 0: there are none; kFindNodes: those that
  /// there are (Group::ranks_of_node).
  int ranks_of_node = 0;
};

/// Experts 0…E−1 lie in runs on the ranks of `ep`. Where the ranks share memory, rows are written to their
/// place (transfer.h), elsewhere they go as messages; backward of dispatch is combine, and the reverse. Ranks
/// of `etp` have slices of the same experts (slices.h): dispatch gives each the rows of all of them, and
/// combine sums what they made of those.
///
/// Errors: what a rank says of its dispatch travels with its counts, so that a wrong argument, an expert that
/// does not exist, or ranks that disagree on rows, dtypes, K or E are the same Error on every rank, which
/// names the rank at fault; the buffer and its group stay usable. Combine and cached dispatch exchange
/// nothing beforehand: a wrong argument there is an Error on that rank, and the others wait for it until
/// their deadline, as for a rank that died: then a CommError names it.
///
/// Bytes that a rank of R sends over ep, with n of its (token, rank) pairs going to other ranks, m coming
/// from them, b bytes a row of x and its scales, and K slots a token with weights of w bytes: dispatch
/// n · (b + K · (8 + w)), 8 more with sources, and the plan (transfer.h); a cached one n · b; combine m · b,
/// and m · K · w for weights.
class Buffer {
 public:
  /// Equal runs. Error: the ranks do not divide the experts.
  Buffer(Group& ep, int experts, BufferOptions options = {});
  /// Error: the map is of another number of ranks; a way that the ranks cannot go.
  Buffer(Group& ep, ExpertMap experts, BufferOptions options = {});

  /// From here on tokens choose among map.experts() experts, and dispatch sends each to a replica, so that
  /// the ranks' loads are level (choose_replicas); local experts are then the rank's slots. Null: none. What
  /// the slots hold is the caller's (move_slots). Every rank calls it, with the same map. Another 8·E·(R − 1)
  /// bytes a dispatch. Error: the map's slots do not lie as the experts of this buffer.
  void set_replicas(std::shared_ptr<const ReplicaMap> map);

  int local_experts() const { return static_cast<int>(experts_.count(group_.rank())); }
  const ExpertMap& experts() const { return experts_; }
  /// What this rank has sent so far (LinkBytes).
  LinkBytes sent() const { return transfer_->sent(); }
  /// x [T, D], topk_idx i64 [T, K] of global experts (−1: none), weights [T, K].
  Task<Dispatched> dispatch(Tensor x_TD, Tensor topk_idx_TK, Tensor weights_TK);
  Task<Dispatched> dispatch(Tokens tokens, DispatchOptions options);
  /// Other rows the same way; nothing but the rows is exchanged. Error: they do not fit the handle.
  Task<Rows> dispatch(Tensor x_TD, Handle handle);
  Task<Redispatched> dispatch(Tensor x_TD, Tensor scales_TS, Handle handle);
  /// Room for the rows of a cached dispatch, which dispatch_into may fill any number of times.
  Redispatched room(const Tensor& x_TD, const Tensor& scales_TS, const Handle& handle) const;
  /// A cached dispatch to the memory of `room`, or of a dispatch with rows_later. Error: they do not fit.
  Task<> dispatch_into(Tensor x_TD, Tensor scales_TS, Handle handle, Redispatched room);
  /// y [R, D] back to the tokens; weights [R, K] beside them, or an empty tensor.
  Task<Combined> combine(Rows y_RD, Handle handle, Tensor weights_RK);
  /// Error: rows, weights, biases or where sums are to go do not fit the handle.
  Task<Combined> combine(Rows y_RD, Handle handle, CombineOptions options);

 private:
  int64_t choosable() const { return replicas_ ? replicas_->experts() : experts_.experts(); }
  Task<Tensor> slots_chosen(Tensor topk_idx_TK);
  void check_thread() const;
  void check_handle(const Handle& handle, const char* call) const;
  void check_combine(const Rows& y, const Handle& handle, const CombineOptions& options) const;
  Task<> move(PooledVector<Tensor> rows_T, Handle handle, PooledVector<Tensor> room_R);
  void expand(Dispatched& dispatched, bool rows_later) const;
  void check_room(const PooledVector<Tensor>& rows, const PooledVector<Tensor>& room,
                  const Handle& handle) const;
  PooledVector<Tensor> compact(const Tensor& y, const Tensor& weights, const Handle& handle) const;

  Group& group_;
  std::unique_ptr<Transfer> transfer_;
  Slices slices_;
  ExpertMap experts_;
  ExpertMap singles_;                           // every local expert on a rank of its own
  std::shared_ptr<const ReplicaMap> replicas_;  // null: each expert is its slot
  bool checked_;
  uint64_t number_;
  std::thread::id thread_;
};

/// Where the sums of rows y, and of weights if there are some, go: `into`, where it is undefined new tensors.
/// Error: they do not fit.
Combined sums_for(const Tensor& y_RD, const Tensor& weights, const Handle& handle, Combined into = {});

}  // namespace phalanx::ep
