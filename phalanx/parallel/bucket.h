// Parameters that are summed, shared out and gathered together.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "phalanx/comm/group.h"
#include "phalanx/parallel/parameter.h"
#include "phalanx/tensor/stream_point.h"

namespace phalanx {

/// A run [begin, end) of flat tensors.
struct FlatRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

/// Weights on their way, from all who have shares of them. More than one task may wait for them.
struct Gather final : Waitable {
  bool poll() override { return !work || work->done(); }
  void wait() override {
    if (work) work->finish();
  }
  std::optional<Work> work;  ///< none: nothing is on its way
};

/// Parameters of one unit (a layer, the embedding) whose gradients the same ranks sum. They lie one behind
/// the other, on a GPU each from a multiple of kGpuAlignment on; where ranks share them out, zeros fill them
/// up to equal shares.
struct Bucket {
  /// Elements: such that accesses of 16 bytes and matrix products may begin there.
  static constexpr int64_t kGpuAlignment = 16;

  std::string unit;
  bool alike = false;        ///< other ranks of tp have the same gradient
  bool counts = true;        ///< in the gradient norm
  bool over_stages = false;  ///< ranks of several stages sum it: at the end of a step
  std::vector<Parameter*> parameters;
  Group* sharers = nullptr;   ///< each has a share; null: this rank has all of it
  Group* replicas = nullptr;  ///< they have the same share; null: no others
  int64_t elements = 0;       ///< with what fills it up
  FlatRange share;            ///< this rank's, of them
  int64_t begin = 0;          ///< elements of earlier buckets
  int64_t shares_before = 0;  ///< elements of this rank's shares of earlier buckets

  Tensor values;  ///< [elements]; undefined while only the share is here
  /// [elements]; undefined until something is added, and again once the optimizer's update is done with them:
  /// backward's activations go as gradients come, and both take the same memory.
  Tensor grads;
  Tensor summed;         ///< of ZeRO-2 and 3 the sum of this rank's share; undefined as grads
  bool reduced = false;  ///< at least once since the last zero_grads
  int passes_left = 0;   ///< backward passes of this step that will still add to it
  int holds = 0;         ///< who needs the values here
  Gather gather;
  StreamPoint updated;    ///< by the optimizer, which may still be at it
  bool updating = false;  ///< nothing of the rank has waited for that point yet
  DType dtype = DType::f32;
  Device device;

  /// The optimizer has queued the update of what is this rank's.
  void mark_updated() {
    updated.mark(device);
    updating = true;
  }
  /// What is queued from now on starts behind that: before anything reads or writes values. The gradients
  /// that it has read are gone, and what is queued may have their memory.
  void settle();
  /// Memory for gradients, if there is none.
  void need_grads();
  /// Every parameter's gradient written, those that nothing added to as zeros.
  void complete_grads();
  /// Where the parameters find their values and gradients; after either has changed.
  void bind();
};

/// "layers.3" of "layers.3.moe.router.w", "embedding" of "embedding.w".
std::string unit_of(const std::string& parameter);

}  // namespace phalanx
