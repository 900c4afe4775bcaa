// One step of a reduction of numbers, for the kernels of reduce.cc and reduce.cu.
#pragma once

#include <type_traits>

#include "phalanx/comm/fingerprint.h"

namespace phalanx {

/// a ∘ b. Integers wrap; max and min keep NaN. constexpr, so that kernels may call it, too.
template <Reduce kReduce, class T>
constexpr T combine(T a, T b) {
  if constexpr (kReduce == Reduce::sum) {
    if constexpr (std::is_integral_v<T>) {
      using U = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
    } else {
      return a + b;
    }
  } else {
    const bool keep_a = kReduce == Reduce::max ? a > b : a < b;
    return keep_a || a != a ? a : b;
  }
}

}  // namespace phalanx
