// The low-latency mode: dispatch and combine of few tokens, as in decoding, into slots of fixed size.
// Vocabulary and meaning are DeepEP's; docs/ep.md, "Low latency".
#pragma once

#include <chrono>
#include <memory>
#include <optional>

#include "phalanx/comm/group.h"
#include "phalanx/ep/expert_map.h"
#include "phalanx/ops/quantize.h"

namespace phalanx::ep {

struct LowLatencyCore;
class LowLatencyWay;

/// Equal on all ranks.
struct LowLatencyOptions {
  int64_t max_tokens = 128;   ///< of a rank in one dispatch
  int64_t width = 0;          ///< elements of a token's row
  DType dtype = DType::bf16;  ///< bf16, f16, f32 or f64
  /// Dispatch sends rows in f8e4m3 with scales of that format (ops/quantize.h), in about half the bytes of
  /// bf16; not f64. What experts make of them has `dtype`.
  std::optional<ScaleFormat> fp8 = {};
  /// A rank from which nothing came for so long in one hook is masked, and the hook goes on. 0: never; a late
  /// rank is an error after the world's deadline. Shorter than that deadline.
  std::chrono::milliseconds mask_after{0};
};

/// The receiving half of an operation that has been sent. It runs when it is called: `co_await hook`, or
/// hook.wait(). Until then nothing waits for other ranks. Dropping one that has not run gives the world up,
/// as dropping a Work does.
class [[nodiscard]] Hook {
 public:
  /// `called` is raised when the hook is called, and outlives it.
  Hook(Work work, bool& called) : work_(std::move(work)), called_(&called) {}

  /// Blocks; gives what the operation gives, once.
  Tensor wait() {
    *called_ = true;
    return work_.wait();
  }
  /// Calls it; makes progress; never blocks.
  bool done() {
    *called_ = true;
    return work_.done();
  }
  bool await_ready() const noexcept { return false; }
  template <class P>
  void await_suspend(std::coroutine_handle<P> self) noexcept {
    *called_ = true;
    work_.await_suspend(self);
  }
  Tensor await_resume() { return work_.await_resume(); }

 private:
  Work work_;
  bool* called_;
};

/// What combine needs of a dispatch. L local experts, R ranks, M = R · max_tokens slots of one expert.
struct LowLatencyHandle {
  Tensor source_LM;  ///< i32: which of its rank's tokens a row is
  Tensor range_LR;   ///< i64, begin << 32 | count: recv[l, begin … begin + count − 1] are rank r's rows
  int64_t number = -1;  ///< of the dispatch
};

/// What a dispatch brings, once its hook has run: one row for each (token, expert). Rows of local expert l
/// are recv[l, 0 … count[l] − 1], by source rank, then token, whatever came first. They stay until the hook
/// of the dispatch after next.
struct LowLatencyDispatched {
  Tensor recv_LMH;    ///< of the buffer's dtype, or f8e4m3
  Tensor scales_LMS;  ///< of FP8: of every 128 elements; else undefined
  Tensor count_L;     ///< i32
  LowLatencyHandle handle;
  Hook hook;  ///< gives an empty tensor
};

/// What a dispatch adds up, where it is given, when its hook runs.
struct LowLatencyStats {
  Tensor rows_L = {};  ///< i32: the rows of each local expert
  /// i64: nanoseconds that the hook has waited for each rank. Ranks are waited for in turn, so that of
  /// several that are late together all but the first only count what they take longer.
  Tensor waited_R = {};
};

/// Dispatch and combine without counts that are exchanged beforehand. Both have a sending half, which the
/// call itself is, and a receiving half, the hook. Two results may live at a time, each from its dispatch to
/// the end of its combine. Slots are allocated once. All ranks make the same calls in the same order, hooks
/// apart. Hooks end before the buffer.
///
/// Masked ranks are not waited for: rows to and from them are skipped, as if none had been sent.
///
/// A token's row goes to each of its experts. Bytes that a rank sends, with b bytes a row (of FP8 with its
/// scales) and sets of W = 8·⌈max_tokens / 64⌉ bytes: where ranks share memory, dispatch b for each (token,
/// expert) of another rank, and W for each expert of another rank; elsewhere b for each (token, other rank),
/// and the same sets. Combine, both ways, the bytes of a row of `dtype` for each that came from another rank.
class LowLatencyBuffer {
 public:
  /// Collective. Error: sizes differ between ranks, make no sense, or the map is of another number of ranks.
  LowLatencyBuffer(Group& group, ExpertMap experts, const LowLatencyOptions& options);
  ~LowLatencyBuffer();
  LowLatencyBuffer(const LowLatencyBuffer&) = delete;
  LowLatencyBuffer& operator=(const LowLatencyBuffer&) = delete;

  /// x [T, H] with T ≤ max_tokens, topk_idx i64 [T, K] of global experts (−1: none; one that a token names
  /// twice gets it once). Both may be changed when the call returns. Error, before anything is sent: an
  /// argument does not fit, or the result before the last has not been combined.
  LowLatencyDispatched dispatch(const Tensor& x_TH, const Tensor& topk_idx_TK,
                                const LowLatencyStats& stats = {});

  /// Where experts may write what they make of the rows of `handle`, [L, M, H], after its hook has run:
  /// combine then reads it there. Other memory works too; where ranks share memory its rows are copied.
  Tensor combine_buffer(const LowLatencyHandle& handle) const;

  /// The hook gives [T, H]: Σ over the token's experts, in the order of K, of weight · row of y [L, M, H], as
  /// weighted_rows (weighted_rows.h) makes it. weights are f32 [T, K] (f64 for f64). A −1, or an expert whose
  /// rank is masked or was so at the dispatch, adds nothing. topk_idx names experts of the token's dispatch.
  /// `out`, if given, is [T, H], and `waited` as LowLatencyStats::waited_R. All belong to the call until its
  /// hook has run. Error, before anything is sent: an argument does not fit, the handle is none of a live
  /// result, or its dispatch's hook has not run.
  Hook combine(const Tensor& y_LMH, const Tensor& topk_idx_TK, const Tensor& weights_TK,
               const LowLatencyHandle& handle, const Tensor& out_TH = {}, const Tensor& waited_R = {});

  /// Takes a rank for dead, or no longer. A rank masks for itself; one that comes back must have made as many
  /// calls as the others. Error: not another rank of the group.
  void update_mask(int rank, bool masked);
  /// i32 [R]: 1 where masked.
  Tensor query_mask() const;
  void clean_mask();

  /// What this rank has moved by this buffer.
  Traffic traffic() const { return group_.traffic(); }

 private:
  Group group_;
  std::unique_ptr<LowLatencyCore> core_;
  std::unique_ptr<LowLatencyWay> way_;
  int64_t dispatches_ = 0;
};

/// Bytes of buffers that DeepEP asks for: 2·(max(m·d, E·m·c) + E·m·max(d, c) + align128(4E)), with m tokens
/// at most of a rank, H elements of a row, d = 16 + max(2H, H + 4⌊H/128⌋), c = 2H + 4⌊H/128⌋. It does not
/// depend on the number of ranks; ours depends on neither, being allocated by the buffer itself.
int64_t low_latency_size_hint(int64_t max_tokens, int64_t hidden, int ranks, int64_t experts);

}  // namespace phalanx::ep
