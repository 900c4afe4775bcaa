// The CUDA twins of ops: same names, arguments and results as in the ops' own headers, for tensors on the GPU
// of the calling thread's stream. The ops call them; they are defined when kHaveCuda. What a CPU op refuses
// because of a value (an index out of range) is found by the kernel and thrown when the stream next
// synchronises.
#pragma once

#include "phalanx/ops/cross_entropy.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/rmsnorm.h"
#include "phalanx/tensor/rows.h"

namespace phalanx::cuda {

// ops/matmul.h: cuBLASLt. f32 products are f32 throughout (no TF32).
Tensor matmul(const Tensor& x_MK, const Tensor& w_KN);
Tensor matmul_nt(const Tensor& x_MK, const Tensor& w_NK);
void matmul_into(const Tensor& y_MN, const Tensor& x_MK, const Tensor& w_KN, Into into);
void matmul_nt_into(const Tensor& y_MN, const Tensor& x_MK, const Tensor& w_NK, Into into);
void matmul_tn_into(const Tensor& dw_NK, const Tensor& dy_MN, const Tensor& x_MK, Into into);

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
