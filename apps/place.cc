// phalanx place: which GPU holds which replicas of which expert, from measured loads.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "apps/commands.h"
#include "phalanx/base/error.h"
#include "phalanx/base/file.h"
#include "phalanx/ep/balance.h"
#include "phalanx/model/strict_json-inl.h"

namespace phalanx {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kLargestFile = uint64_t{1} << 30;

struct Options {
  std::string loads;
  ep::BalanceSizes sizes;
  std::string policy;  // empty: best, beside EPLB in the table for people
  std::string previous;
  int64_t max_moves = -1;  // no limit
  std::string json;
};

struct Loads {
  int64_t layers = 0;
  int64_t experts = 0;
  std::vector<float> weight_LE;
};

float load_of(const strict_json::Json& value, const std::string& where) {
  if (!value.is_number()) throw Error("{}: a number is expected, found {}", where, strict_json::found(value));
  return value.get<float>();
}

Loads read_loads(const std::string& path) {
  const strict_json::Json file = strict_json::parse(read_text(path, kLargestFile), path);
  const std::string key = path + ": \"loads\"";
  const strict_json::Json& layers = strict_json::as_array(strict_json::member(file, "loads", path), key);
  Loads loads{.layers = std::ssize(layers)};
  if (loads.layers == 0) throw Error("{}: at least one layer is expected", key);
  for (int64_t l = 0; l < loads.layers; ++l) {
    const std::string where = format("{}: layer {}", key, l);
    const strict_json::Json& layer = strict_json::as_array(layers[static_cast<size_t>(l)], where);
    if (layer.empty()) throw Error("{}: at least one expert is expected", where);
    if (l == 0) loads.experts = std::ssize(layer);
    if (std::ssize(layer) != loads.experts) {
      throw Error("{} has {} experts, layer 0 has {}", where, layer.size(), loads.experts);
    }
    for (size_t e = 0; e < layer.size(); ++e) {
      loads.weight_LE.push_back(load_of(layer[e], format("{}, expert {}", where, e)));
    }
  }
  return loads;
}

// The slots that an earlier run wrote.
std::vector<int32_t> read_previous(const std::string& path, const ep::BalanceSizes& sizes) {
  const strict_json::Json file = strict_json::parse(read_text(path, kLargestFile), path);
  const std::string key = path + ": \"phy2log\"";
  const strict_json::Json& layers = strict_json::as_array(strict_json::member(file, "phy2log", path), key);
  if (std::ssize(layers) != sizes.layers) {
    throw Error("{} has {} layers, the loads have {}", key, layers.size(), sizes.layers);
  }
  std::vector<int32_t> slots;
  for (int64_t l = 0; l < sizes.layers; ++l) {
    const std::string where = format("{}: layer {}", key, l);
    const strict_json::Json& layer = strict_json::as_array(layers[static_cast<size_t>(l)], where);
    if (std::ssize(layer) != sizes.replicas) {
      throw Error("{} has {} slots, --replicas is {}", where, layer.size(), sizes.replicas);
    }
    for (const strict_json::Json& e : layer) {
      slots.push_back(static_cast<int32_t>(strict_json::as_count(e, INT32_MAX, where)));
    }
  }
  return slots;
}

// Runs something whose errors are about a file.
template <class Action>
auto about(const std::string& path, Action action) {
  try {
    return action();
  } catch (const Error& e) {
    throw Error("{}: {}", path, e.what());
  }
}

struct Placed {
  ep::ReplicaPlacement placement;
  double ms = 0;
};

Placed place(const std::string& policy, const Loads& loads, const ep::BalanceSizes& sizes,
             const ep::Incumbent& incumbent) {
  const auto begin = std::chrono::steady_clock::now();
  Placed p;
  p.placement = policy == "eplb" ? ep::rebalance_experts(loads.weight_LE, sizes)
                                 : ep::balance_experts(loads.weight_LE, sizes, incumbent);
  p.ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  return p;
}

// [rows, columns] as lists of lists.
Json table(std::span<const int32_t> values, int64_t columns) {
  Json rows = Json::array();
  for (size_t at = 0; at < values.size(); at += static_cast<size_t>(columns)) {
    rows.push_back(values.subspan(at, static_cast<size_t>(columns)));
  }
  return rows;
}

std::string json_text(const Placed& p, const Loads& loads, std::span<const int32_t> previous) {
  const ep::BalanceSizes& s = p.placement.sizes;
  const std::span<const int32_t> slots = p.placement.log2phy;
  const auto layer = static_cast<size_t>(s.experts * p.placement.most_copies);
  Json log2phy = Json::array();
  for (size_t at = 0; at < slots.size(); at += layer) {
    log2phy.push_back(table(slots.subspan(at, layer), p.placement.most_copies));
  }
  Json all = {{"phy2log", table(p.placement.phy2log, s.replicas)},
              {"log2phy", std::move(log2phy)},
              {"logcnt", table(p.placement.logcnt, s.experts)},
              {"max_over_mean", ep::max_over_mean(loads.weight_LE, p.placement)},
              {"lower_bound", ep::lower_bound(loads.weight_LE, s)},
              {"duplicates", ep::duplicates(p.placement)}};
  if (!previous.empty()) all["moved"] = ep::moved(previous, p.placement);
  all["ms"] = p.ms;
  return all.dump() + "\n";
}

std::string worst_and_mean(const std::vector<double>& ratios) {
  const double sum = std::accumulate(ratios.begin(), ratios.end(), 0.0);
  return format("{:.4f}    {:.4f}", std::ranges::max(ratios), sum / static_cast<double>(ratios.size()));
}

void print(const std::map<std::string, Placed>& placed, const Loads& loads,
           std::span<const int32_t> previous) {
  const ep::BalanceSizes& s = placed.begin()->second.placement.sizes;
  std::printf("%ld layers, %ld experts in %ld replicas on %ld GPUs, %ld slots each", long{s.layers},
              long{s.experts}, long{s.replicas}, long{s.gpus}, long{s.slots()});
  if (s.closed_nodes() > 1) std::printf("; %ld groups stay on %ld nodes", long{s.groups}, long{s.nodes});
  std::printf("\n\nload of the fullest GPU, as a multiple of the mean\n");
  std::printf("policy  worst     mean      duplicates  %sms\n", previous.empty() ? "" : "moved    ");
  for (const auto& [policy, p] : placed) {
    std::printf("%-6s  %s    %-10ld  ", policy.c_str(),
                worst_and_mean(ep::max_over_mean(loads.weight_LE, p.placement)).c_str(),
                long{ep::duplicates(p.placement)});
    if (!previous.empty()) std::printf("%-7ld  ", long{ep::moved(previous, p.placement)});
    std::printf("%.3g\n", p.ms);
  }
  std::printf("bound   %s\n", worst_and_mean(ep::lower_bound(loads.weight_LE, s)).c_str());
}

void run_place(Options o) {
  const Loads loads = read_loads(o.loads);
  o.sizes.layers = loads.layers;
  o.sizes.experts = loads.experts;
  ep::check_sizes(o.sizes);
  about(o.loads, [&] { ep::check_loads(loads.weight_LE, o.sizes); });
  if (o.policy == "eplb" && o.max_moves >= 0)
    throw Error("--max-moves: policy eplb starts afresh, take best");
  std::vector<int32_t> previous;
  if (!o.previous.empty()) previous = read_previous(o.previous, o.sizes);
  if (!o.json.empty() && o.json != "-") check_can_write(o.json);
  ep::Incumbent incumbent{.phy2log = previous};
  if (o.max_moves >= 0) incumbent.max_moves = o.max_moves;
  std::map<std::string, Placed> placed;
  for (const char* policy : {"best", "eplb"}) {
    if (o.policy == policy || (o.policy.empty() && (o.json.empty() || policy == std::string("best")))) {
      placed[policy] = about(o.previous.empty() ? o.loads : o.previous,
                             [&] { return place(policy, loads, o.sizes, incumbent); });
    }
  }
  const std::string text = o.json.empty() ? "" : json_text(placed.begin()->second, loads, previous);
  if (o.json == "-") {
    std::printf("%s", text.c_str());
    return;
  }
  if (!o.json.empty()) write_over(o.json, text);
  print(placed, loads, previous);
}

}  // namespace

void add_place(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("place", "Place replicas of experts on GPUs, by their loads");
  command
      .add_option("--loads", options->loads,
                  "JSON, {\"loads\": [[tokens of each expert], ... for each layer]}")
      ->required();
  command.add_option("--replicas", options->sizes.replicas, "Of all experts of a layer together")->required();
  command.add_option("--gpus", options->sizes.gpus, "They share the replicas evenly")->required();
  command.add_option("--groups", options->sizes.groups, "Of experts, from which the router chooses")
      ->capture_default_str();
  command
      .add_option("--nodes", options->sizes.nodes,
                  "Of the GPUs; where they divide the groups, each group stays on one")
      ->capture_default_str();
  command
      .add_option("--policy", options->policy,
                  "eplb: DeepSeek's; best: replication and packing together (unless given: best, and a table "
                  "has both)")
      ->check(CLI::IsMember({"eplb", "best"}));
  CLI::Option* const previous = command.add_option(
      "--previous", options->previous, "The placement in use, as --json writes it; best stays close to it");
  command
      .add_option("--max-moves", options->max_moves,
                  "The most replicas, of all layers together, that may come to a GPU that has none of theirs")
      ->check(CLI::NonNegativeNumber)
      ->needs(previous);
  command.add_option("--json", options->json, "Write the placement to this file (-: standard output)");
  command.footer(
      "Example:\n  phalanx place --loads loads.json --replicas 288 --groups 8 --nodes 4 --gpus 32 --json "
      "placement.json");
  command.callback([options] { run_place(*options); });
}

}  // namespace phalanx
