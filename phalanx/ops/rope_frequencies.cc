#include <algorithm>
#include <cmath>
#include <numbers>

#include "phalanx/ops/rope.h"

namespace phalanx {
namespace {

double magnitude(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

// How much of each pair's frequency is divided by the factor: 0 up to pair `low`, 1 from pair `high` on.
class Ramp {
 public:
  Ramp(double theta, int64_t columns, const Yarn& yarn) {
    // The pair, as a real number, that turns so many times in the original context.
    const auto pair = [&](double turns) {
      return static_cast<double>(columns) * std::log(yarn.original_context / (turns * 2 * std::numbers::pi)) /
             (2 * std::log(theta));
    };
    low_ = std::max(std::floor(pair(yarn.beta_fast)), 0.0);
    high_ = std::min(std::ceil(pair(yarn.beta_slow)), static_cast<double>(columns - 1));
    if (low_ == high_) high_ += 0.001;  // as Hugging Face does
  }
  double at(int64_t i) const {
    return std::clamp((static_cast<double>(i) - low_) / (high_ - low_), 0.0, 1.0);
  }

 private:
  double low_;
  double high_;
};

}  // namespace

double score_factor(const Yarn& yarn) {
  const double m = magnitude(yarn.factor, yarn.mscale_all_dim);
  return m * m;
}

Rotation rotation(double theta, int64_t columns, const Yarn& yarn) {
  PHX_CHECK(columns > 0 && columns % 2 == 0, "pairs of {} columns", columns);
  Rotation r;
  for (int64_t i = 0; i < columns; i += 2) {
    r.frequencies.push_back(std::pow(theta, -static_cast<double>(i) / static_cast<double>(columns)));
  }
  if (yarn.factor == 1) return r;
  const Ramp ramp(theta, columns, yarn);
  for (int64_t i = 0; i < columns / 2; ++i) {
    r.frequencies[static_cast<size_t>(i)] *= 1 - ramp.at(i) + ramp.at(i) / yarn.factor;
  }
  const bool both = yarn.mscale > 0 && yarn.mscale_all_dim > 0;
  r.factor = both ? magnitude(yarn.factor, yarn.mscale) / magnitude(yarn.factor, yarn.mscale_all_dim)
                  : magnitude(yarn.factor, 1);
  return r;
}

}  // namespace phalanx
