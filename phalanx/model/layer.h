// What every layer is.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "phalanx/base/task.h"
#include "phalanx/model/config.h"
#include "phalanx/model/slice_history.h"
#include "phalanx/ops/decode_attention.h"
#include "phalanx/ops/linears.h"
#include "phalanx/ops/route.h"
#include "phalanx/parallel/context_parallel.h"
#include "phalanx/parallel/data_parallel.h"
#include "phalanx/parallel/tensor_parallel.h"
#include "phalanx/tensor/tape.h"

namespace phalanx {

/// Tokens and targets some places on in their sequences, as multi-token prediction (model/mtp.h) sees them.
struct Ahead {
  Tensor tokens;   // i32 [T/cp], 0 where the sequence has ended
  Tensor targets;  // i32 [T/cp], kIgnore there
};

/// One microbatch of the ranks of cp: B sequences (or documents), one after the other, T tokens in all; this
/// rank's T/cp rows of it (parallel/context_rows.h), which need not be one run.
struct Batch {
  Tensor tokens;            // i32 [T/cp]
  Tensor targets;           // i32 [T/cp], kIgnore where none
  Tensor positions;         // i32 [T/cp], in the token's sequence
  Tensor sequence_offsets;  // i64 [B+1], of all T rows
  Tensor rows;  // i64 [T/cp], the token's number in the step's whole batch: the key of its dropout
  std::vector<Ahead> ahead = {};  // by depth k: k + 1 places on

  // Of a slice (model/slices.h), whose T rows are those above:
  int slice = 0;              // its number
  Tensor whole_offsets = {};  // i64 [B+1], of the sequences in the rows of its microbatch
};

/// Fills in where the sequences of a whole microbatch begin (its rows, ascending from 0), and the positions
/// in them.
void set_sequences(Batch& batch, std::span<const int64_t> starts);
/// The same whole microbatch, with so many depths of what lies ahead.
Batch with_ahead(Batch batch, int depths);
/// The same batch with those rows of its tokens.
Batch with_rows(Batch batch, const RowRuns& rows);
/// The same batch with its tokens on `device`; where sequences begin the host needs to know.
Batch on_device(Batch batch, Device device);
/// Of a whole microbatch, or a slice of one, the part that is a rank's of cp.
Batch own_tokens(Batch batch, const ContextShare& share);

/// Where decoding keeps keys and values.
class KvStore {
 public:
  virtual ~KvStore() = default;
  /// Appends the batch's new keys and values to those of the layer; then what its queries see: y [T, H·e].
  virtual Tensor attend(int layer, const AttentionRows& rows, const Batch& batch,
                        const AttentionConfig& config) = 0;
};

/// A store of one sequence that gives any list of segments.
class SegmentStore : public KvStore {
 public:
  /// Appends the new rows of a layer (k already rotated), [T, G·d] each; gives all the layer's segments.
  virtual std::span<const KvSegment> append(int layer, const Tensor& k_TGd, const Tensor& v_TGd) = 0;
  Tensor attend(int layer, const AttentionRows& rows, const Batch& batch,
                const AttentionConfig& config) override {
    turn(rows, batch.positions, config.head_dim);
    const std::span<const KvSegment> segments = append(layer, rows.k_TGd, rows.v_TGd);
    return attention_over_segments(rows.q_THd, batch.positions, segments, config);
  }
};

/// What a block keeps of its forward only as inputs, to run it again before its backward (T. Chen et al.
/// 2016): nothing, one branch, or all of it. The second run draws the same dropout and routes alike.
enum class Recompute : uint8_t { none, attention, mlp, full };
inline const char* recompute_name(Recompute r) {
  constexpr const char* kNames[] = {"none", "attention", "mlp", "full"};
  return kNames[static_cast<size_t>(r)];
}

/// The layers of a stage that do so.
struct Recomputation {
  Recompute what = Recompute::none;
  int layers = 0;  ///< the first ones; 0: all

  /// What the stage's layer of that number, from 0, runs again.
  Recompute of(int layer) const { return layers == 0 || layer < layers ? what : Recompute::none; }
};

/// What a router has just chosen for some tokens.
struct Routed {
  const std::string& router;  // "layers.3.mlp.router"
  uint64_t step;
  bool again;               // a forward that runs the second time
  const Tensor& numbers_T;  // as Batch's rows
  const RoutingConfig& config;
  const Tensor& bias_E;
  const Routing& routing;
};

/// Sees every choice before it takes effect, and may write another one.
class RoutingWatch {
 public:
  virtual ~RoutingWatch() = default;
  virtual void routed(const Routed& routed) = 0;
};

/// What the layers share in one forward or backward. Small: passed by value; the batch, the cache and the
/// history outlive it.
struct Pass {
  const Batch* batch = nullptr;
  uint64_t step = 0;          ///< of the optimizer: dropout draws anew each step
  double scale = 0;           ///< backward: of the summed loss
  bool training = false;      ///< dropout on
  bool deterministic = true;  ///< else attention's backward on GPUs may sum in any order, faster
  Recomputation recompute;
  int64_t loss_rows =
      0;               ///< training: whose logits are here at once, with their gradient; 0: all, until then
  bool again = false;  ///< a forward that runs the second time: statistics count the first
  KvStore* cache = nullptr;         ///< decoding: the sequences attend to what the store holds
  const RowNorm* norm = nullptr;    ///< decoding: of a layer that norms() its rows, by what
  SliceHistory* history = nullptr;  ///< of a batch that is a slice: what its microbatch's slices share
  RoutingWatch* watch = nullptr;

  /// What the layer's rows are still to be normed by.
  RowNorm row_norm() const { return norm ? *norm : RowNorm(); }

  /// The batch's sequences, as attention of that layer takes them.
  SequenceRows sequence_rows(int layer) const {
    if (history == nullptr) return {batch->sequence_offsets};
    return {batch->sequence_offsets, &history->layer(layer).attention, batch->slice};
  }
};

/// The pass of the stage's layer of that number, from 0: `recompute.what` is what it runs again.
Pass pass_of_layer(Pass pass, int layer);

/// The gradients of a part are complete for this microbatch, once what is put off has run.
Task<> passed(DataParallel* data, DataParallel::Part* part, Tape& tape);

/// What layers are built from; outlives them.
struct Builder {
  ParameterStore& store;
  DataParallel& data;
  TensorParallel& tensor;
  ContextParallel& context;
  const ModelConfig& config;
};

/// What a branch of the residual stream computes, with a written backward. Coroutines: they wait where ranks
/// communicate.
class Layer {
 public:
  virtual ~Layer() = default;
  /// x [T, D] → [T, D], the stream's rows (parallel/tensor_parallel.h), plus `residual` [T, D], which may be
  /// empty; saves on the tape what backward takes.
  virtual Task<Tensor> forward(Tensor x_TD, Tensor residual_TD, Pass pass, Tape& tape) = 0;
  /// Whether forward norms x itself, if `pass.norm` is given.
  virtual bool norms() const { return false; }
  /// The gradient of x; adds to the gradients of the parameters, or defers that work on the tape.
  virtual Task<Tensor> backward(Tensor dy_TD, Pass pass, Tape& tape) = 0;
};

}  // namespace phalanx
