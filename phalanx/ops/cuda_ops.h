// The CUDA twins of ops: same names, arguments and results as in the ops' own headers, for tensors on the GPU
// of the calling thread's stream. The ops call them; they are defined when kHaveCuda. What a CPU op refuses
// because of a value (an index out of range) is found by the kernel and thrown when the stream next
// synchronises.
//
// They also take bf16: arithmetic is in f32, rounded once. What is kept for backward (moments, log-sum-exps)
// is then f32, and so may be the sums that gradients of weights are added to.
#pragma once

#include <array>
#include <span>

#include "phalanx/ops/argmax.h"
#include "phalanx/ops/attention.h"
#include "phalanx/ops/cross_entropy.h"
#include "phalanx/ops/decode_attention.h"
#include "phalanx/ops/dropout.h"
#include "phalanx/ops/fp8_grouped.h"
#include "phalanx/ops/gelu_linear.h"
#include "phalanx/ops/latent_kv.h"
#include "phalanx/ops/layernorm.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/optimizer.h"
#include "phalanx/ops/permute.h"
#include "phalanx/ops/rmsnorm.h"
#include "phalanx/ops/rope.h"
#include "phalanx/ops/route.h"
#include "phalanx/ops/swiglu.h"
#include "phalanx/tensor/rows.h"

namespace phalanx::cuda {

// ops/matmul.h: cuBLASLt (cublaslt.h). f32 products are f32 throughout (no TF32); those of bf16 may go to
// f32.
Tensor matmul(const Tensor& x_MK, const Tensor& w_KN);
Tensor matmul_nt(const Tensor& x_MK, const Tensor& w_NK);
void matmul_into(const Tensor& y_MN, const Tensor& x_MK, const Tensor& w_KN, Into into);
void matmul_nt_into(const Tensor& y_MN, const Tensor& x_MK, const Tensor& w_NK, Into into);
void linear_into(const Tensor& y_MN, const Tensor& x_MK, const Tensor& w_NK, const Tensor& b_N,
                 const Tensor& also_MN);
void tune_products(bool on);
// ops/gelu_linear.h, where cuBLASLt has it: K > 0.
bool fuses_gelu(const Tensor& h_MN, Gelu kind);
void linear_gelu_into(const GeluRows& out, const Tensor& x_MK, const Tensor& w_NK, const Tensor& b_N);
void matmul_gelu_backward_into(const Tensor& dh_MK, const Tensor& dy_MN, const Tensor& w_NK,
                               const Tensor& h_MK);
void matmul_tn_into(const Tensor& dw_NK, const Tensor& dy_MN, const Tensor& x_MK, Into into);
// Grouped: bf16 on sm_90 by wgmma, where rows are whole 16 bytes; else by a plain kernel in f32 or f64.
Rows grouped_matmul(const Rows& x_RK, const Tensor& w_EKN, const Tensor& offsets);
Rows grouped_matmul_nt(const Rows& x_RK, const Tensor& w_ENK, const Tensor& offsets);
void grouped_matmul_tn_into(const Tensor& dw_ENK, const Rows& dy_RN, const Rows& x_RK, const Tensor& offsets,
                            Into into);

// ops/elementwise.h
Tensor add(const Tensor& a, const Tensor& b);
void add_into(const Tensor& x, const Tensor& y);
void scale_into(const Tensor& x, double factor);
Tensor sum_of_squares(const Tensor& x);

// ops/cast.h
void narrow_into(const Tensor& y, const Tensor& x);
void widen_into(const Tensor& y, const Tensor& x);

// ops/bias.h
void add_bias_into(const Tensor& y_TN, const Tensor& b_N);
void bias_backward_into(const Tensor& db_N, const Tensor& dy_TN);

// ops/gelu.h
void gelu_into(const Tensor& y, const Tensor& x, Gelu kind);
void gelu_backward_into(const Tensor& dx, const Tensor& dy, const Tensor& x, Gelu kind);

// ops/dropout.h
Tensor dropout(const Tensor& x_TD, const Tensor& rows, const DropoutSite& site);

// ops/rope.h: forth (direction 1) or back (−1).
void rope_into(const Tensor& x_THd, const Tensor& positions, int64_t head_dim, const Rotation& rotation,
               double direction);

// ops/optimizer.h
void adamw_into(const AdamWTensors& tensors, double gradient_scale, const AdamWStep& step);
void adamw_into(const AdamWTensors& tensors, double gradient_scale, const AdamWStep& step,
                const StochasticRounding& rounding);
void sgd_into(const Tensor& w, const Tensor& g, double gradient_scale, double lr);

// ops/attention.h: of tiles that share neither queries nor keys and are all causal or none, to what `out`
// holds (adds) or over it.
void attention(const std::array<Tensor, 3>& q_k_v, const Attended& out, std::span<const AttentionTile> tiles,
               bool adds, const AttentionConfig& config);
void attention_backward(const AttentionBackward& in, const AttentionGradients& out,
                        std::span<const AttentionTile> tiles, bool adds, const AttentionConfig& config);
/// Sets all to −∞.
void fill_infinity(const Tensor& log_sum_exp_TH);
Tensor attention_over_segments(const Tensor& q_THd, const Tensor& positions,
                               std::span<const KvSegment> segments, const AttentionConfig& config);

// ops/decode_attention.h
void append_to_pages(const KvPages& pages, const KvPlaces& places, const Tensor& k_TGd, const Tensor& v_TGd);
void turn_and_append(const KvPages& pages, const KvPlaces& places, const AttentionRows& rows,
                     int64_t head_dim);
Tensor attention_over_pages(const Tensor& q_THd, const KvPlaces& places, const KvPages& pages,
                            const AttentionConfig& config);

// ops/argmax.h
void argmax_into(const Tensor& chosen, const Tensor& x_TV);
void advance_into(const DecodeRows& rows, const Tensor& chosen);

// ops/head_runs.h: of heads in so many runs.
Tensor pack_heads(const Tensor& x_THd, int runs, int ranks);
Tensor unpack_heads(const Tensor& y, int runs, int ranks);

// ops/latent_kv.h: the shared columns' gradient is summed in arithmetic's dtype.
KeysAndValues expand_kv(const Tensor& kv_THd, const Tensor& k_rope_Td, const LatentHeads& shape);
LatentGradients expand_kv_backward(const Tensor& dk_THd, const Tensor& dv_THd, const LatentHeads& shape);

// ops/layernorm.h
LayerNormed layernorm(const Tensor& x_TD, const Tensor& w_D, const Tensor& b_D, double eps);
Tensor layernorm_backward(const Tensor& dy_TD, const Tensor& x_TD, const Tensor& w_D, const LayerNormed& kept,
                          const LayerNormSums& sums);

// ops/rmsnorm.h
RmsNormed rmsnorm(const Tensor& x_TD, const Tensor& w_D, double eps);
Tensor rmsnorm_backward(const Tensor& dy_TD, const Tensor& x_TD, const Tensor& w_D, const Tensor& inv_rms_T,
                        const Tensor& dw_D, const Tensor& also_TD);

// ops/swiglu.h. Weights of bf16 rows are f32, and so are their gradients.
Rows swiglu(const Rows& gate_up);
Rows swiglu_backward(const Rows& dy_RF, const Rows& gate_up);
WeightedSwigluGradients weighted_swiglu_backward(const Rows& dy_CF, const Rows& gate_up,
                                                 const ExpertOrder& order, const Tensor& weights_RK);

// ops/embedding.h
Tensor embedding(const Tensor& table_VD, const Tensor& tokens, VocabularyPart part);
void embedding_backward_into(const Tensor& dtable_VD, const Tensor& dy_TD, const Tensor& tokens,
                             VocabularyPart part);

// ops/cross_entropy.h
CrossEntropy cross_entropy(const Tensor& logits_TV, const Tensor& targets);
Tensor cross_entropy_gradient_into(const Tensor& logits, const Tensor& targets, double scale);
Tensor cross_entropy_part(const Tensor& logits_TV, const Tensor& targets, VocabularyPart part);
CrossEntropy merge_cross_entropy(const Tensor& parts_RT3, const Tensor& targets, DType dtype);
void cross_entropy_backward_into(const Tensor& logits_TV, const Tensor& targets, const Tensor& log_sum_exp_T2,
                                 double scale, VocabularyPart part);

// ops/route.h. Scores are f32 or f64; of bf16 there are only the router's operands. Sequence offsets are on
// the host.
Tensor router_logits(const Tensor& x_TD, const Tensor& w_ED);
Routing route(const Tensor& logits_TE, const RoutingConfig& config, const Tensor& bias_E);
Tensor route_backward(const Tensor& dweights_TK, const Tensor& dscores_TE, const Routing& routing,
                      const RoutingConfig& config);
Tensor within_capacity(const Tensor& topk_idx_TK, const Tensor& numbers_T, const Tensor& sequence_offsets,
                       const ExpertRoom& room);
Tensor balance_counts(const Routing& routing, const Tensor& sequence_offsets);
Tensor balance_loss(const Routing& routing, const Tensor& sequence_offsets, const Tensor& counts_BE);
Tensor balance_loss_backward(const Routing& routing, const Tensor& sequence_offsets, const Tensor& counts_BE,
                             double scale);
Tensor log_sum_exp(const Tensor& logits_TE);
Tensor z_loss(const Tensor& log_sum_exp_T);
void z_loss_backward_into(const Tensor& dlogits_TE, const Tensor& logits_TE, const Tensor& log_sum_exp_T,
                          double scale);

// ops/quantize.h
Quantized quantize(const Tensor& x_TD, ScaleFormat format);

// ops/fp8.h, into tensors of the right shapes; of lines, those that are not null.
void fp8_lines_into(const Tensor& x_TD, const Fp8Lines* rows, const Fp8Lines* columns);
void fp8_columns_into(const Fp8Lines& rows, const Fp8Lines& columns);
void fp8_blocks_into(const Tensor& w_NK, ScaleFormat format, const Fp8Blocks& to);
void fp8_blocks_transposed_into(const Tensor& w_NK, ScaleFormat format, const Fp8Blocks& to);
void fp8_transposed_into(const Fp8Blocks& w, const Fp8Blocks& to);

// ops/fp8_matmul.h: by wgmma, on sm_90 alone (Error).
void fp8_matmul_nt_into(const Tensor& y_MN, const Fp8Lines& a_MK, const Fp8Blocks& b_NK, Into into);
void fp8_matmul_nt_into(const Tensor& y_MN, const Fp8Lines& a_MK, const Fp8Lines& b_NK, Into into);

// ops/fp8_grouped.h, into tensors of the right shapes.
void fp8_live_rows_into(const Rows& x_RD, const Fp8Lines& to);
void fp8_grouped_columns_into(const Tensor& x_RD, const Tensor& offsets, const Fp8Lines* rows,
                              const Fp8Lines& columns);
void fp8_grouped_columns_into(const Fp8Lines& rows, const Tensor& offsets, const Fp8Lines& columns);
void fp8_grouped_matmul_nt_into(const Tensor& y_RN, const Fp8Lines& x_RK, const Fp8Blocks& w_ENK,
                                const Tensor& offsets);
void fp8_grouped_matmul_tn_into(const Tensor& dw_ENK, const Fp8Lines& dy_NC, const Fp8Lines& x_KC,
                                const Tensor& offsets, Into into);

// ops/permute.h. Weights of bf16 rows are f32.
ExpertOrder order_by_expert(const Rows& topk_idx_RK, int experts);
Rows permute(const Rows& x_RD, const ExpertOrder& order);
Rows unpermute(const Rows& rows, const ExpertOrder& order, const Tensor& weights_RK, const Rows& like_RD);

// ops/keep_experts.h
void keep_experts(const Tensor& topk_idx_RK, int64_t first, int64_t count);

}  // namespace phalanx::cuda
