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

#include "phalanx/ops/attention.h"
#include "phalanx/ops/cross_entropy.h"
#include "phalanx/ops/dropout.h"
#include "phalanx/ops/gelu.h"
#include "phalanx/ops/layernorm.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/optimizer.h"
#include "phalanx/ops/rmsnorm.h"
#include "phalanx/ops/rope.h"
#include "phalanx/tensor/rows.h"

namespace phalanx::cuda {

// ops/matmul.h: cuBLASLt. f32 products are f32 throughout (no TF32); those of bf16 may go to f32.
Tensor matmul(const Tensor& x_MK, const Tensor& w_KN);
Tensor matmul_nt(const Tensor& x_MK, const Tensor& w_NK);
void matmul_into(const Tensor& y_MN, const Tensor& x_MK, const Tensor& w_KN, Into into);
void matmul_nt_into(const Tensor& y_MN, const Tensor& x_MK, const Tensor& w_NK, Into into);
void matmul_tn_into(const Tensor& dw_NK, const Tensor& dy_MN, const Tensor& x_MK, Into into);
// Grouped: bf16 on sm_90 by wgmma, where rows are whole 16 bytes; else by a plain kernel in f32 or f64.
Rows grouped_matmul(const Rows& x_RK, const Tensor& w_EKN, const Tensor& offsets);
Rows grouped_matmul_nt(const Rows& x_RK, const Tensor& w_ENK, const Tensor& offsets);
void grouped_matmul_tn_into(const Tensor& dw_ENK, const Rows& dy_RN, const Rows& x_RK, const Tensor& offsets,
                            Into into);

// ops/elementwise.h. The sum of squares is a host number, so it waits for the stream.
Tensor add(const Tensor& a, const Tensor& b);
void add_into(const Tensor& x, const Tensor& y);
void scale_into(const Tensor& x, double factor);
double sum_of_squares(const Tensor& x);

// ops/cast.h
void narrow_into(const Tensor& y, const Tensor& x);
void widen_into(const Tensor& y, const Tensor& x);

// ops/bias.h
void add_bias_into(const Tensor& y_TN, const Tensor& b_N);
void bias_backward_into(const Tensor& db_N, const Tensor& dy_TN);

// ops/gelu.h
Tensor gelu(const Tensor& x, Gelu kind);
Tensor gelu_backward(const Tensor& dy, const Tensor& x, Gelu kind);

// ops/dropout.h
Tensor dropout(const Tensor& x_TD, const Tensor& rows, const DropoutSite& site);

// ops/rope.h: forth (direction 1) or back (−1).
void rope_into(const Tensor& x_THd, const Tensor& positions, int64_t head_dim, const Rotation& rotation,
               double direction);

// ops/optimizer.h
void adamw_into(const std::array<Tensor, 4>& w_m_v_g, double gradient_scale, const AdamWStep& step);
void sgd_into(const Tensor& w, const Tensor& g, double gradient_scale, double lr);

// ops/attention.h, f32 and f64: of tiles that share neither queries nor keys, to what `out` holds (adds) or
// over it.
void attention(const std::array<Tensor, 3>& q_k_v, const Attended& out, std::span<const AttentionTile> tiles,
               bool adds, const AttentionConfig& config);
void attention_backward(const AttentionBackward& in, const AttentionGradients& out,
                        std::span<const AttentionTile> tiles, bool adds, const AttentionConfig& config);
/// Sets all to −∞.
void fill_infinity(const Tensor& log_sum_exp_TH);

// ops/layernorm.h
LayerNormed layernorm(const Tensor& x_TD, const Tensor& w_D, const Tensor& b_D, double eps);
Tensor layernorm_backward(const Tensor& dy_TD, const Tensor& x_TD, const Tensor& w_D, const LayerNormed& kept,
                          const Tensor& dw_D, const Tensor& db_D);

// ops/rmsnorm.h
RmsNormed rmsnorm(const Tensor& x_TD, const Tensor& w_D, double eps);
Tensor rmsnorm_backward(const Tensor& dy_TD, const Tensor& x_TD, const Tensor& w_D, const Tensor& inv_rms_T,
                        const Tensor& dw_D);

// ops/swiglu.h
Rows swiglu(const Rows& gate_up);
Rows swiglu_backward(const Rows& dy_RF, const Rows& gate_up);

// ops/embedding.h
Tensor embedding(const Tensor& table_VD, const Tensor& tokens);
void embedding_backward_into(const Tensor& dtable_VD, const Tensor& dy_TD, const Tensor& tokens);

// ops/cross_entropy.h. The loss is a host number, so the forward waits for the stream.
CrossEntropy cross_entropy(const Tensor& logits_TV, const Tensor& targets);
void cross_entropy_backward_into(const Tensor& logits_TV, const Tensor& targets, const Tensor& log_sum_exp_T2,
                                 double scale);

}  // namespace phalanx::cuda
