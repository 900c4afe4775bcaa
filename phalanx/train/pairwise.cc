#include "phalanx/train/pairwise.h"

#include <algorithm>
#include <map>
#include <set>

namespace phalanx {
namespace {

using Pair = std::pair<std::string, std::string>;

class Cover {
 public:
  explicit Cover(const std::vector<Settings>& cases) {
    std::map<Pair, int> numbers;
    for (const Settings& c : cases) {
      std::vector<int>& mine = pairs_.emplace_back();
      for (const std::string& a : c.values) {
        for (const std::string& b : c.values) {
          if (a < b)
            mine.push_back(numbers.try_emplace({a, b}, static_cast<int>(numbers.size())).first->second);
        }
      }
    }
    missing_.assign(numbers.size(), true);
  }

  void choose(size_t i) {
    chosen_.insert(i);
    for (const int pair : pairs_[i]) missing_[static_cast<size_t>(pair)] = false;
  }
  int64_t gain(size_t i) const {
    return std::ranges::count_if(pairs_[i], [this](int p) { return missing_[static_cast<size_t>(p)]; });
  }
  /// The first of those with the most missing pairs.
  size_t best_of(const std::vector<size_t>& candidates) const {
    return *std::ranges::max_element(candidates, {}, [this](size_t i) { return gain(i); });
  }
  std::vector<size_t> chosen() const { return {chosen_.begin(), chosen_.end()}; }

 private:
  std::vector<std::vector<int>> pairs_;  // by case
  std::vector<bool> missing_;            // by pair
  std::set<size_t> chosen_;
};

}  // namespace

std::vector<size_t> cover_pairs(const std::vector<Settings>& cases) {
  Cover cover(cases);
  std::map<std::string, std::vector<size_t>> groups;
  std::vector<size_t> all;
  for (size_t i = 0; i < cases.size(); ++i) {
    groups[cases[i].group].push_back(i);
    all.push_back(i);
  }
  for (const auto& [group, members] : groups) cover.choose(cover.best_of(members));
  while (!all.empty()) {
    const size_t best = cover.best_of(all);
    if (cover.gain(best) == 0) break;
    cover.choose(best);
  }
  return cover.chosen();
}

}  // namespace phalanx
