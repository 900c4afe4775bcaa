#include "phalanx/train/plot.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace phalanx {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

TEST(Plot, RangeKeepsACurveWholeAndLeavesOutASpike) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> noise(-0.05, 0.05);
  for (const size_t n : {7, 50, 2000, 20000}) {
    std::vector<double> losses;
    for (size_t i = 0; i < n; ++i) {
      losses.push_back(1.5 + 2.7 * std::exp(-12.0 * static_cast<double>(i) / static_cast<double>(n)) +
                       noise(random));
    }
    const auto [least, greatest] = std::ranges::minmax(losses);
    losses[n / 2 + random() % (n / 2)] = kNaN;
    losses[n / 2 + random() % (n / 2)] = kInf;
    PlotRange r = robust_range(losses);
    EXPECT_GE(r.low, least);
    EXPECT_EQ(r.high, greatest) << n;
    losses[n / 2 + random() % (n / 2)] = 1e6;
    r = robust_range(losses);
    EXPECT_EQ(r.high, greatest) << n;
  }
}

TEST(Plot, RangeOfFewOrNoValues) {
  const auto range = [](std::vector<double> v) {
    const PlotRange r = robust_range(v);
    return std::pair(r.low, r.high);
  };
  EXPECT_EQ(range({}), std::pair(0.0, 0.0));
  EXPECT_EQ(range({kNaN, -kInf}), std::pair(0.0, 0.0));
  EXPECT_EQ(range({3, 1000, -2}), std::pair(-2.0, 1000.0));  // too few to call one of them a spike
  EXPECT_EQ(range({2, 2, 2, 2, 2, 2}), std::pair(2.0, 2.0));
  EXPECT_EQ(range({1e300, -1e300}), std::pair(-kPlotLimit, kPlotLimit));
}

TEST(Plot, RoomIsNeverEmptyAndStaysPositive) {
  for (const PlotRange r :
       {PlotRange{0, 0}, PlotRange{2.5, 2.5}, PlotRange{-4, -4}, PlotRange{1e-300, 1e-300},
        PlotRange{-kPlotLimit, kPlotLimit}, PlotRange{0.01, 5}}) {
    for (const bool from_zero : {false, true}) {
      const PlotRange w = with_room(r, from_zero);
      EXPECT_LT(w.low, w.high) << r.low;
      EXPECT_TRUE(w.low <= r.low && r.high <= w.high) << r.low;
      EXPECT_TRUE(r.low < 0 || w.low >= 0) << r.low;
    }
  }
  EXPECT_EQ(with_room({3, 4}, true).low, 0);
  EXPECT_GT(with_room({3, 4}, false).low, 2.9);
}

TEST(Plot, TicksAreNiceMultiplesWithinTheRange) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> unit(0, 1);
  for (int i = 0; i < 1000; ++i) {
    const double size = std::pow(10, 24 * unit(random) - 12);
    const double low = size * (unit(random) - 0.5);
    const PlotRange r = {low, low + size * (0.1 + unit(random))};
    const int about = 3 + static_cast<int>(random() % 8);
    const Ticks t = ticks_of(r, about);
    const double mantissa = t.step / std::pow(10, std::floor(std::log10(t.step * 1.0001)));
    EXPECT_TRUE(std::abs(mantissa - 1) < 1e-6 || std::abs(mantissa - 2) < 1e-6 ||
                std::abs(mantissa - 5) < 1e-6)
        << t.step;
    EXPECT_GE(t.at.size(), 1U);
    EXPECT_LE(t.at.size(), static_cast<size_t>(about) + 1);
    for (const double at : t.at) {
      EXPECT_GE(at, r.low - 1e-8 * size);
      EXPECT_LE(at, r.high + 1e-8 * size);
      EXPECT_NEAR(std::remainder(at, t.step), 0, 1e-6 * t.step);
    }
  }
  EXPECT_EQ(ticks_of({0, 3}, 8, 1).at, (std::vector<double>{0, 1, 2, 3}));
}

std::vector<std::string> tick_texts(PlotRange range, int about) {
  const Ticks ticks = ticks_of(range, about);
  std::vector<std::string> out;
  for (const double t : ticks.at) out.push_back(tick_text(ticks, t));
  return out;
}

TEST(Plot, TickTexts) {
  using Texts = std::vector<std::string>;
  EXPECT_EQ(tick_texts({1.4, 3.1}, 4), (Texts{"1.5", "2.0", "2.5", "3.0"}));
  EXPECT_EQ(tick_texts({0, 0.001}, 5), (Texts{"0", "2e-4", "4e-4", "6e-4", "8e-4", "1e-3"}));
  EXPECT_EQ(tick_texts({0, 41000}, 5), (Texts{"0", "10,000", "20,000", "30,000", "40,000"}));
  EXPECT_EQ(tick_texts({0, 2e6}, 4), (Texts{"0", "0.5M", "1.0M", "1.5M", "2.0M"}));
  EXPECT_EQ(tick_texts({-2, 2}, 4), (Texts{"−2", "−1", "0", "1", "2"}));
  EXPECT_EQ(tick_texts({0, 3e12}, 3), (Texts{"0", "1e12", "2e12", "3e12"}));
  EXPECT_EQ(tick_texts({2.49999, 2.50001}, 2), (Texts{"2.49999e0", "2.5e0", "2.50001e0"}));
}

TEST(Plot, NumberTexts) {
  EXPECT_EQ(number_text(0, 3), "0");
  EXPECT_EQ(number_text(1.2345, 3), "1.23");
  EXPECT_EQ(number_text(-12.345, 4), "−12.35");
  EXPECT_EQ(number_text(41234.6, 4), "41,235");
  EXPECT_EQ(number_text(0.0005034, 3), "5.03e-4");
  EXPECT_EQ(number_text(1e-3, 3), "1e-3");
  EXPECT_EQ(number_text(1.25e12, 3), "1.25e12");
  EXPECT_EQ(number_text(1e300, 1), "1e300");
  EXPECT_EQ(number_text(kNaN, 3), "nan");
  EXPECT_EQ(number_text(-kInf, 3), "−inf");
}

TEST(Plot, ThinnedKeepsExtremesOrderAndGaps) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<PlotPoint> line;
  for (int i = 0; i < 10007; ++i) line.push_back({static_cast<double>(i), normal(random)});
  const size_t gap = random() % line.size();
  line[gap].y = kNaN;
  const std::vector<PlotPoint> thin = thinned(line, 100);
  EXPECT_LE(thin.size(), 201U);
  const auto less = [](const PlotPoint& a, const PlotPoint& b) { return a.y < b.y || std::isnan(b.y); };
  const auto more = [](const PlotPoint& a, const PlotPoint& b) { return a.y > b.y || std::isnan(b.y); };
  EXPECT_EQ(std::ranges::min_element(thin, less)->y, std::ranges::min_element(line, less)->y);
  EXPECT_EQ(std::ranges::min_element(thin, more)->y, std::ranges::min_element(line, more)->y);
  EXPECT_TRUE(std::ranges::is_sorted(thin, {}, &PlotPoint::x));
  EXPECT_EQ(std::ranges::count_if(thin, [](auto& p) { return std::isnan(p.y); }), 1);
  EXPECT_EQ(std::ranges::count(thin, static_cast<double>(gap), &PlotPoint::x), 1);
  EXPECT_EQ(thinned(std::span(line).first(200), 100).size(), 200U);
  EXPECT_TRUE(thinned({}, 100).empty());
}

TEST(Plot, RunningMedianIgnoresSpikesAndGaps) {
  std::vector<PlotPoint> line;
  for (int i = 0; i < 101; ++i) line.push_back({static_cast<double>(i), static_cast<double>(i)});
  line[50].y = 1e9;
  line[51].y = kNaN;
  const std::vector<PlotPoint> median = running_median(line, 9, 101);
  ASSERT_EQ(median.size(), 101U);
  EXPECT_EQ(median[0].y, 0);
  EXPECT_EQ(median[20].y, 20);
  EXPECT_EQ(median[50].y, 52);  // of 46…49, 52…54, 1e9: the upper of the middle two
  EXPECT_NEAR(median[51].y, 52, 1);
  EXPECT_EQ(median[100].y, 98);
  const std::vector<PlotPoint> few = running_median(line, 9, 11);
  ASSERT_EQ(few.size(), 11U);
  EXPECT_EQ(few.front().x, 0);
  EXPECT_EQ(few.back().x, 100);
  EXPECT_TRUE(running_median({}, 9, 11).empty());
  const std::vector<PlotPoint> start = {{0, 3}, {1, 9}, {2, 5}, {3, 4}, {4, 4}};
  EXPECT_EQ(running_median(start, 9, 5)[1].y, 5);  // of as many before it as after it
}

}  // namespace
}  // namespace phalanx
