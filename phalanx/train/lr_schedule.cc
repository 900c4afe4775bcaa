#include "phalanx/train/lr_schedule.h"

#include <cmath>
#include <numbers>

namespace phalanx {

double learning_rate(const LrConfig& c, int64_t step, int64_t steps) {
  if (step < c.warmup) return c.lr * static_cast<double>(step + 1) / static_cast<double>(c.warmup + 1);
  if (c.decay == Decay::constant) return c.lr;
  const int64_t end = c.decay_steps > 0 ? c.decay_steps : steps;
  if (step >= end) return c.min_lr;
  const double ratio = static_cast<double>(step - c.warmup) / static_cast<double>(end - c.warmup);
  const double left = c.decay == Decay::cosine ? 0.5 * (1 + std::cos(std::numbers::pi * ratio)) : 1 - ratio;
  return c.min_lr + left * (c.lr - c.min_lr);
}

}  // namespace phalanx
