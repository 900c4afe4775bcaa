// Dropout by counter: the mask is a function of (stream, step, global element), never stored.
#pragma once

#include "phalanx/base/philox.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// Where the elements of x [T, D] stand in the whole job: row i is global row rows[i] (i64 [T]), so that
/// element (i, j) draws 32 bits at index rows[i] · D + j of `stream` at `step`, the same in every layout.
struct DropoutSite {
  RandomStream stream;
  uint64_t step = 0;
  double rate = 0;  ///< in [0, 1): an element is zero with this probability, else divided by 1 − rate
};
/// An element is zero when its 32 bits are below this: rate · 2³², rounded down.
uint32_t dropout_threshold(double rate);
/// A new tensor of x's shape; f32 or f64.
Tensor dropout(const Tensor& x_TD, const Tensor& rows, const DropoutSite& site);
/// The gradient: the same mask on dy.
inline Tensor dropout_backward(const Tensor& dy_TD, const Tensor& rows, const DropoutSite& site) {
  return dropout(dy_TD, rows, site);
}

}  // namespace phalanx
