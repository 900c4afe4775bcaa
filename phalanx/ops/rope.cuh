// What kernels that rotate share: how fast pairs turn, as their argument.
#pragma once

#include <algorithm>

#include "phalanx/base/check.h"
#include "phalanx/ops/rope.h"

namespace phalanx::cuda {

inline constexpr int kMostPairs = 256;  // of a head: what fits a kernel's arguments

__device__ inline void sine_and_cosine(double angle, double& sine, double& cosine) {
  sincos(angle, &sine, &cosine);
}
// The whole turns are taken off in f64.
__device__ inline void sine_and_cosine(double angle, float& sine, float& cosine) {
  constexpr double kTurn = 6.283185307179586477;
  sincosf(static_cast<float>(fma(-rint(angle * (1 / kTurn)), kTurn, angle)), &sine, &cosine);
}

/// A rotation, forth (direction 1) or back (−1).
struct Turns {
  double frequencies[kMostPairs];
  double factor;
  double direction;
  int pairs;

  Turns(const Rotation& rotation, double towards)
      : frequencies{},
        factor(rotation.factor),
        direction(towards),
        pairs(static_cast<int>(rotation.frequencies.size())) {
    PHX_CHECK(pairs <= kMostPairs, "{} pairs turn, a GPU's kernel takes {}", pairs, kMostPairs);
    std::ranges::copy(rotation.frequencies, frequencies);
  }

  /// What pair i turns by at a position (A: float or double).
  template <class A>
  __device__ void angle(int32_t position, int i, A& cosine, A& sine) const {
    sine_and_cosine(static_cast<double>(position) * frequencies[i], sine, cosine);
    cosine = static_cast<A>(factor) * cosine;
    sine = static_cast<A>(factor * direction) * sine;
  }
};

}  // namespace phalanx::cuda
