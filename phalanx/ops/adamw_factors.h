// The factors of one AdamW update, for the kernels of optimizer.cc and optimizer.cu.
#pragma once

#include <cmath>

#include "phalanx/ops/optimizer.h"

namespace phalanx {

/// In the arithmetic of the parameters:
/// w ← w·decay − rate · m / (√v·correction + eps), with m ← β1·m + rest1·g and v ← β2·v + rest2·(scale·g)².
template <class T>
struct AdamWFactors {
  AdamWFactors(const AdamWStep& s, double gradient_scale)
      : beta1(static_cast<T>(s.beta1)),
        beta2(static_cast<T>(s.beta2)),
        rest1(static_cast<T>((1 - s.beta1) * gradient_scale)),
        rest2(static_cast<T>(1 - s.beta2)),
        scale(static_cast<T>(gradient_scale)),
        decay(static_cast<T>(1 - s.lr * s.weight_decay)),
        rate(static_cast<T>(s.lr / (1 - std::pow(s.beta1, static_cast<double>(s.step))))),
        correction(static_cast<T>(1 / std::sqrt(1 - std::pow(s.beta2, static_cast<double>(s.step))))),
        eps(static_cast<T>(s.eps)) {}
  T beta1, beta2, rest1, rest2, scale, decay, rate, correction, eps;
};

}  // namespace phalanx
