// One matrix product on the calling thread, by the library that measured fastest (docs/decisions.md).
#pragma once

#include <cstdint>

namespace phalanx {

/// How the two factors of c [m, n] are stored, row-major: a is [m, k], or [k, m] when transposed; b is [k,
/// n], or [n, k] when transposed. Strides are elements from row to row.
template <class T>
struct Gemm {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  const T* a = nullptr;
  int64_t a_stride = 0;
  bool a_transposed = false;
  const T* b = nullptr;
  int64_t b_stride = 0;
  bool b_transposed = false;
  T* c = nullptr;
  int64_t c_stride = 0;
  bool accumulate = false;  ///< c += a·b, else c = a·b
};

/// Runs on the calling thread alone, at once with others. The bits depend on the sizes and strides, not on
/// the thread. Sizes may be 0.
void gemm(const Gemm<float>& g);   ///< oneDNN
void gemm(const Gemm<double>& g);  ///< OpenBLAS

}  // namespace phalanx
