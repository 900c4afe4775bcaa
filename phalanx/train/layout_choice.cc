#include "phalanx/train/layout_choice.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>

namespace phalanx {
namespace {

constexpr int kMostRanks = 128;
constexpr size_t kMostLayouts = 3;

double distance(const Layout& a, const Layout& b) {
  double sum = 0;
  for (const auto axis : {&Layout::pp, &Layout::dp, &Layout::cp, &Layout::tp, &Layout::ep, &Layout::etp}) {
    sum += std::abs(std::log2(a.*axis) - std::log2(b.*axis));
  }
  return sum;
}

// "dp=2,tp=2", "tp=4"
std::string nearest_of(std::vector<Layout> layouts, const Layout& wanted,
                       const std::function<bool(const Layout&)>& fits) {
  std::ranges::stable_sort(layouts, {}, [&](const Layout& l) { return distance(l, wanted); });
  std::string text;
  size_t found = 0;
  for (const Layout& layout : layouts) {
    if (!fits(layout)) continue;
    text += format("{}\"{}\"", found == 0 ? "" : ", ", layout.text());
    if (++found == kMostLayouts) break;
  }
  return text;
}

}  // namespace

std::vector<Layout> layouts_of_model(const ModelConfig& model, int ranks) {
  std::vector<Layout> layouts;
  const auto add_experts = [&](Layout layout) {
    const int stage_ranks = layout.dp * layout.cp * layout.tp;
    for (layout.ep = 1; layout.ep <= stage_ranks; ++layout.ep) {
      for (layout.etp = 1; layout.etp <= stage_ranks / layout.ep; ++layout.etp) {
        const bool divides = stage_ranks % (layout.ep * layout.etp) == 0;
        if (divides && misfit(model, layout).empty()) layouts.push_back(layout);
      }
    }
  };
  for (int pp = 1; pp <= std::min(ranks, model.layers); ++pp) {
    for (int tp = 1; tp <= ranks / pp; ++tp) {
      for (int cp = 1; cp <= ranks / (pp * tp); ++cp) {
        const int rest = ranks / (pp * tp * cp);
        if (rest * pp * tp * cp == ranks) add_experts({.pp = pp, .dp = rest, .cp = cp, .tp = tp});
      }
    }
  }
  return layouts;
}

std::string other_layouts(const ModelConfig& model, const Layout& wanted,
                          const std::function<bool(const Layout&)>& fits) {
  const int ranks = wanted.ranks();
  if (ranks == 1 || ranks > kMostRanks) return {};
  std::vector<int> sizes(static_cast<size_t>(2 * ranks - 1));
  std::iota(sizes.begin(), sizes.end(), 2);
  std::ranges::stable_sort(sizes, {}, [&](int n) { return std::abs(n - ranks); });
  for (const int n : sizes) {
    const std::string layouts = nearest_of(layouts_of_model(model, n), wanted, fits);
    if (!layouts.empty()) return format("; these layouts of {} ranks fit: {}", n, layouts);
  }
  return {};
}

}  // namespace phalanx
