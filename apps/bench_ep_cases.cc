#include "apps/bench_ep_cases.h"

#include <algorithm>
#include <map>
#include <ranges>

#include "phalanx/base/error.h"
#include "phalanx/base/text.h"

namespace phalanx {
namespace {

const std::map<std::string, DType> kDtypes = {{"bf16", DType::bf16},
                                              {"f16", DType::f16},
                                              {"f32", DType::f32},
                                              {"f64", DType::f64},
                                              {"e4m3", DType::f8e4m3}};

// What a mode measures unless told otherwise, and what it can.
struct Mode {
  int64_t tokens = 0;
  int64_t width = 0;
  int runs = 0;
  std::vector<std::string> dtypes;  // the first one unless told otherwise
};
const std::map<std::string, Mode> kModes = {
    {"throughput", {4096, 7168, 15, {"bf16", "e4m3", "f16", "f32", "f64"}}},
    {"low-latency", {128, 7168, 200, {"bf16", "e4m3", "f16", "f32", "f64"}}},
    {"two-level", {4096, 7168, 15, {"bf16", "e4m3", "f16", "f32", "f64"}}},
    {"overlap", {512, 1024, 5, {"f32", "f64"}}}};
constexpr int kExpertWidth = 256;

EpCase start(const std::string& name, const EpChoices& choices) {
  const Mode& mode = kModes.at(name);
  EpCase c = {.mode = name, .dtype = mode.dtypes.front()};
  c.shape = {.tokens = mode.tokens, .width = mode.width};
  if (name == "two-level") c.ranks_of_node = choices.ranks_of_node;
  if (name == "overlap") c.expert_width = choices.expert_width > 0 ? choices.expert_width : kExpertWidth;
  c.runs = choices.runs > 0 ? choices.runs : mode.runs;
  return c;
}

// Each case with each of the values; an empty list leaves the cases as they are.
template <class T, class Set>
void choose(std::vector<EpCase>& cases, const std::vector<T>& values, Set set) {
  if (values.empty()) return;
  std::vector<EpCase> all;
  for (const EpCase& c : cases) {
    for (const T& value : values) set(all.emplace_back(c), value);
  }
  cases = std::move(all);
}

void check(const EpCase& c) {
  const ep::TimesShape& s = c.shape;
  if (s.top_k > s.experts) {
    throw Error("--top-k {} of --experts {}: a token's experts differ; take a smaller --top-k", s.top_k,
                s.experts);
  }
  if (s.experts % c.ranks != 0) {
    throw Error("{} ranks do not divide {} experts: take --experts {}", c.ranks, s.experts,
                (s.experts / c.ranks + 1) * c.ranks);
  }
  const std::vector<std::string>& dtypes = kModes.at(c.mode).dtypes;
  if (std::ranges::find(dtypes, c.dtype) == dtypes.end()) {
    throw Error("--mode {} has no rows of --dtype {}: leave one of them out, or take {}", c.mode, c.dtype,
                dtypes.front());
  }
  if (c.mode != "two-level") return;
  if (c.ranks_of_node == 0) {
    throw Error("--mode two-level needs --ranks-of-node: how many of the {} ranks are a node", c.ranks);
  }
  if (c.ranks % c.ranks_of_node != 0) {
    throw Error("--ranks-of-node {} does not divide {} ranks: take a divisor of them", c.ranks_of_node,
                c.ranks);
  }
}

void check_used(const EpChoices& choices, bool given, const char* option, const char* mode) {
  if (!given || std::ranges::find(choices.modes, mode) != choices.modes.end()) return;
  throw Error("{} is of --mode {}: add that mode, or leave the option out", option, mode);
}

}  // namespace

std::string EpCase::text() const {
  return format("{}, {} ranks, {} tokens of {} {}, {} of {} experts", mode, ranks, shape.tokens, shape.width,
                dtype, shape.top_k, shape.experts);
}

std::vector<std::string> ep_modes() {
  const auto names = std::views::keys(kModes);
  return {names.begin(), names.end()};
}

std::vector<std::string> ep_dtypes() {
  const auto names = std::views::keys(kDtypes);
  return {names.begin(), names.end()};
}

std::vector<EpCase> ep_cases(const EpChoices& choices) {
  std::vector<EpCase> cases;
  for (const std::string& mode : choices.modes) cases.push_back(start(mode, choices));
  choose(cases, choices.ranks, [](EpCase& c, int ranks) { c.ranks = ranks; });
  choose(cases, choices.tokens, [](EpCase& c, int64_t tokens) { c.shape.tokens = tokens; });
  choose(cases, choices.widths, [](EpCase& c, int64_t width) { c.shape.width = width; });
  choose(cases, choices.top_ks, [](EpCase& c, int64_t top_k) { c.shape.top_k = top_k; });
  choose(cases, choices.experts, [](EpCase& c, int experts) { c.shape.experts = experts; });
  choose(cases, choices.dtypes, [](EpCase& c, const std::string& dtype) { c.dtype = dtype; });
  for (EpCase& c : cases) {
    c.shape.dtype = kDtypes.at(c.dtype);
    check(c);
  }
  check_used(choices, choices.ranks_of_node > 0, "--ranks-of-node", "two-level");
  check_used(choices, choices.expert_width > 0, "--expert-width", "overlap");
  return cases;
}

}  // namespace phalanx
