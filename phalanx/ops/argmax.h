// Greedy choice.
#pragma once

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// Of each row of x [T, V] (f32 or f64; on a GPU also bf16; V > 0) the number of its largest element, the
/// lowest of equal ones, into `chosen` (i32 [T]). NaN is never chosen, unless there is nothing else: then 0.
void argmax_into(Tensor chosen, const Tensor& x_TV);

/// What decoding B sequences goes on from, i32 all: the last token of each and its position [B], and the
/// texts so far [B, C].
struct DecodeRows {
  Tensor tokens;
  Tensor positions;
  Tensor text_BC;
};
/// Each sequence goes on with its chosen token (i32 [B]): it comes behind the last one, whose place is below
/// C − 1, and becomes the last one.
void advance_into(const DecodeRows& rows, const Tensor& chosen);

}  // namespace phalanx
