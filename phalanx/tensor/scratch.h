// Scratch memory for the threads of an op.
#pragma once

#include "phalanx/base/parallel_for.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// `elements` of T for each thread of the calling rank's parallel_for, taken from the rank's allocator:
/// workers take no memory of their own, which nobody would count.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t elements)
      : stride_((elements + kLine - 1) / kLine * kLine),
        memory_(Tensor::empty({parallel_threads(), stride_}, dtype_of<T>)) {}

  /// The calling thread's part, 64-byte aligned; inside a body of the constructing thread's parallel_for.
  T* mine() const { return memory_.data<T>() + parallel_index() * stride_; }

 private:
  static constexpr int64_t kLine = 64 / sizeof(T);

  int64_t stride_;
  Tensor memory_;
};

}  // namespace phalanx
