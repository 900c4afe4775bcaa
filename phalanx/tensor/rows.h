// Rows whose number may be known only on the device.
#pragma once

#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// data [capacity, …], of which the first `live` rows count; live is an i64 [1] tensor on data's device. Ops
/// on rows read it there, so that no shape depends on data; the rows behind are undefined.
struct Rows {
  Tensor data;
  Tensor live;

  int64_t capacity() const { return data.rows(); }
  /// The live count on the host (CPU tensors only: elsewhere it would wait for the device).
  int64_t count() const {
    const int64_t n = live.data<int64_t>()[0];
    PHX_CHECK(n >= 0 && n <= capacity(), "{} live rows of {}", n, capacity());
    return n;
  }
  /// Bytes of the live rows; as count.
  size_t live_bytes() const {
    return static_cast<size_t>(count() * data.row_size()) * dtype_size(data.dtype());
  }
};

/// All rows of a tensor.
Rows all_rows(Tensor data);

/// New rows beside `like`: the same live count, other row extents.
inline Rows rows_like(const Rows& like, const Shape& shape, DType dtype) {
  return {Tensor::empty(shape.with_rows(like.capacity()), dtype, like.data.device()), like.live};
}

}  // namespace phalanx
