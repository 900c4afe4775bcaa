// What `phalanx bench ep` measures: each value of its lists with each of the others.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "phalanx/ep/times.h"

namespace phalanx {

/// Empty lists and 0: by the mode.
struct EpChoices {
  std::vector<std::string> modes = {"throughput"};
  std::vector<int> ranks = {2};
  std::vector<int64_t> tokens;
  std::vector<int64_t> widths;
  std::vector<int64_t> top_ks = {8};
  std::vector<int> experts = {64};
  std::vector<std::string> dtypes;
  int ranks_of_node = 0;
  int expert_width = 0;
  int runs = 0;
};

struct EpCase {
  std::string mode;
  int ranks = 2;
  std::string dtype;
  ep::TimesShape shape;
  int ranks_of_node = 0;  // of two levels, else 0
  int expert_width = 0;   // of a layer that overlaps, else 0
  int runs = 0;

  /// "throughput, 2 ranks, 4096 tokens of 7168 bf16, 8 of 64 experts".
  std::string text() const;
};

/// Of --mode and --dtype.
std::vector<std::string> ep_modes();
std::vector<std::string> ep_dtypes();

/// In the order of the lists above. Error: a case that cannot be, and which option to change.
std::vector<EpCase> ep_cases(const EpChoices& choices);

}  // namespace phalanx
