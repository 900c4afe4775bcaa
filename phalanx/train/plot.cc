#include "phalanx/train/plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "phalanx/base/text.h"
#include "phalanx/base/units.h"

namespace phalanx {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::vector<double> finite(std::span<const double> values) {
  std::vector<double> out;
  for (const double v : values) {
    if (std::isfinite(v)) out.push_back(std::clamp(v, -kPlotLimit, kPlotLimit));
  }
  return out;
}

// "5.0300e-04" becomes "5.03e-4".
std::string scientific(double value, int digits) {
  const std::string s = format("{:.{}e}", value, digits - 1);
  const size_t e = s.find('e');
  std::string mantissa = s.substr(0, e);
  if (mantissa.find('.') != std::string::npos) {
    mantissa.erase(mantissa.find_last_not_of('0') + 1);
    if (mantissa.back() == '.') mantissa.pop_back();
  }
  return format("{}e{}", mantissa, std::stoi(s.substr(e + 1)));
}

std::string fixed(double value, int decimals) {
  std::string s = format("{:.{}f}", std::abs(value), decimals);
  const size_t point = std::min(s.find('.'), s.size());
  s = grouped(std::stoull(s.substr(0, point))) + s.substr(point);
  return value < 0 ? "−" + s : s;
}

}  // namespace

PlotRange robust_range(std::span<const double> values) {
  std::vector<double> sorted = finite(values);
  if (sorted.empty()) return {0, 0};
  std::ranges::sort(sorted);
  const size_t outer = sorted.size() < 5 ? 0 : std::max<size_t>(1, sorted.size() / 20);
  const double low = sorted[outer];
  const double high = sorted[sorted.size() - 1 - outer];
  const double times = 5 + 50 / static_cast<double>(sorted.size());
  const double reach = times * std::max(high - low, 0.2 * std::max(std::abs(low), std::abs(high)));
  return {*std::ranges::lower_bound(sorted, low - reach),
          *(std::ranges::upper_bound(sorted, high + reach) - 1)};
}

PlotRange with_room(PlotRange range, bool from_zero) {
  const double size = std::max(std::abs(range.low), std::abs(range.high));
  double span = range.high - range.low;
  const bool positive = range.low >= 0;
  if (!(span > 1e-9 * size)) {
    span = size > 0 ? 0.2 * size : 1;
    range = {range.low - span / 2, range.high + span / 2};
  }
  range = {range.low - 0.04 * span, range.high + 0.06 * span};
  if (positive && (from_zero || range.low < 0)) range.low = 0;
  return range;
}

Ticks ticks_of(PlotRange range, int about, double smallest_step) {
  const double raw = std::max((range.high - range.low) / about, smallest_step);
  const double power = std::pow(10, std::floor(std::log10(raw)));
  Ticks ticks;
  for (const double nice : {1, 2, 5, 10}) {
    ticks.step = nice * power;
    if (ticks.step >= raw * (1 - 1e-9)) break;
  }
  const double slack = 1e-9 * (range.high - range.low);
  for (double i = std::ceil((range.low - slack) / ticks.step); i * ticks.step <= range.high + slack; ++i) {
    ticks.at.push_back(i * ticks.step);
    if (ticks.at.size() > 100) break;  // a step too small to count with
  }
  return ticks;
}

std::string tick_text(const Ticks& ticks, double tick) {
  double largest = 0;
  for (const double t : ticks.at) largest = std::max(largest, std::abs(t));
  if (std::abs(tick) < ticks.step / 2) return "0";
  const auto exponent = [](double v) { return static_cast<int>(std::floor(std::log10(v) + 1e-9)); };
  if (ticks.step < 1e-3 || largest >= 1e9) {
    return scientific(tick, std::clamp(exponent(std::abs(tick)) - exponent(ticks.step) + 1, 1, 15));
  }
  const bool millions = largest >= 1e6;
  const double unit = millions ? 1e6 : 1;
  const int decimals = std::clamp(-exponent(ticks.step / unit), 0, 12);
  return fixed(tick / unit, decimals) + (millions ? "M" : "");
}

std::string number_text(double value, int digits) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "−inf";
  if (value == 0) return "0";
  const double size = std::abs(value);
  if (size < 1e-2 || size >= 1e9) return scientific(value, digits);
  return fixed(value, std::max(0, digits - 1 - static_cast<int>(std::floor(std::log10(size)))));
}

std::vector<PlotPoint> thinned(std::span<const PlotPoint> line, size_t buckets) {
  if (line.size() <= 2 * buckets) return {line.begin(), line.end()};
  std::vector<PlotPoint> out;
  for (size_t b = 0; b < buckets; ++b) {
    const size_t end = (b + 1) * line.size() / buckets;
    size_t least = end;
    size_t greatest = end;
    size_t gap = end;
    for (size_t i = b * line.size() / buckets; i < end; ++i) {
      if (!std::isfinite(line[i].y)) {
        gap = i;
        continue;
      }
      if (least == end || line[i].y < line[least].y) least = i;
      if (greatest == end || line[i].y > line[greatest].y) greatest = i;
    }
    std::array<size_t, 3> chosen = {least, greatest, gap};
    std::ranges::sort(chosen);
    for (size_t i = 0; i < chosen.size() && chosen[i] < end; ++i) {
      if (i == 0 || chosen[i] != chosen[i - 1]) out.push_back(line[chosen[i]]);
    }
  }
  return out;
}

std::vector<PlotPoint> running_median(std::span<const PlotPoint> line, size_t window, size_t count) {
  std::vector<PlotPoint> out;
  std::vector<double> near;
  count = std::min(count, line.size());
  for (size_t p = 0; p < count; ++p) {
    const size_t at = count == 1 ? line.size() - 1 : p * (line.size() - 1) / (count - 1);
    const size_t half = std::min(window / 2, at);
    near.clear();
    for (size_t i = at - half; i < std::min(line.size(), at + half + 1); ++i) {
      if (std::isfinite(line[i].y)) near.push_back(line[i].y);
    }
    const auto middle = near.begin() + static_cast<std::ptrdiff_t>(near.size() / 2);
    std::ranges::nth_element(near, middle);
    out.push_back({line[at].x, near.empty() ? kNaN : *middle});
  }
  return out;
}

}  // namespace phalanx
