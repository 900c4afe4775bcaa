// Choosing a few of many cases so that any two settings still meet.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace phalanx {

/// A case by its settings, "tp=2", "schedule=1f1b", and the group of cases that it belongs to.
struct Settings {
  std::string group;
  std::vector<std::string> values;
};

/// Indices, ascending, of few cases among which there is one of every group, and every pair of settings that
/// some case has. Greedy: the next is one that has most of the pairs that are still missing.
std::vector<size_t> cover_pairs(const std::vector<Settings>& cases);

}  // namespace phalanx
