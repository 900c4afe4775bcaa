// The numbers behind a chart: what range an axis has, where its ticks are, which points need drawing.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace phalanx {

/// A y that is not finite is a gap in the line.
struct PlotPoint {
  double x = 0;
  double y = 0;
};

struct PlotRange {
  double low = 0;
  double high = 1;
};

/// Larger magnitudes are drawn as this one, so that differences of values stay finite.
inline constexpr double kPlotLimit = 1e100;

/// From the smallest to the largest finite value, but for those that would squeeze all others together: of n
/// ≥ 5 values the outer 5 % (at least one) on each side are left out when they lie further off than 5 + 50 ÷
/// n times what the rest spans; few values say little about what is usual. {0, 0} without a finite value.
PlotRange robust_range(std::span<const double> values);

/// The range with some room on both sides, never empty. A range of positive numbers does not reach below
/// zero; with `from_zero` it begins there.
PlotRange with_room(PlotRange range, bool from_zero);

/// Multiples of `step`, which is 1, 2 or 5 times a power of ten.
struct Ticks {
  double step = 1;
  std::vector<double> at;
};

/// About `about` ticks within the range; the step is at least `smallest_step` (1 for counts).
Ticks ticks_of(PlotRange range, int about, double smallest_step = 0);

/// The tick's label; all ticks of one axis have the same number of decimals: "1.5", "20,000", "5e-4", "2M".
std::string tick_text(const Ticks& ticks, double tick);

/// A value with so many significant digits: "1.234", "12,345", "5.03e-4", "nan".
std::string number_text(double value, int digits);

/// The least and greatest point of each of `buckets` runs of neighbouring points, in the line's order, and a
/// gap where the run has one: drawn at that many pixels it looks like the whole line.
std::vector<PlotPoint> thinned(std::span<const PlotPoint> line, size_t buckets);

/// The median of `window` neighbours at up to `count` points from the first to the last. Where the line has
/// fewer points before (the window then is smaller) or after, of those there are; gaps are left out of it.
std::vector<PlotPoint> running_median(std::span<const PlotPoint> line, size_t window, size_t count);

}  // namespace phalanx
