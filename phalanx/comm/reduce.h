// The arithmetic of collectives, in one place: every transport and algorithm gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "phalanx/comm/fingerprint.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// True for the dtypes that reduce_parts knows: f64, f32, bf16, f16, i64, i32.
bool can_reduce(DType dtype);

/// Writes to each output, element by element, in[0] ∘ in[1] ∘ … in that order; `n` elements each. bf16 and
/// f16 are summed in f32 and rounded once. Integers wrap. A NaN stays one under max and min. An output may be
/// an input; otherwise they do not overlap.
void reduce_parts(DType dtype, Reduce reduce, std::span<const std::byte* const> in,
                  std::span<std::byte* const> out, int64_t n);

/// The same of tensors, wherever they lie: out = in[0] ∘ in[1] ∘ …, all of one dtype and number of elements.
void reduce_tensors(const Tensor& out, std::span<const Tensor> in, Reduce reduce);

namespace cuda {
/// Of tensors on the GPU of the calling thread's stream, or that it reaches; at most 256.
void reduce_tensors(const Tensor& out, std::span<const Tensor> in, Reduce reduce);
}  // namespace cuda

}  // namespace phalanx
