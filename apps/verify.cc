// phalanx verify: every layout against one rank.
#include <CLI/CLI.hpp>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/options.h"
#include "phalanx/base/file.h"
#include "phalanx/train/layout_choice.h"
#include "phalanx/train/verify.h"

namespace phalanx {
namespace {

struct Options {
  ConfigOptions config;
  std::string layouts = "all";
  std::string part;
  std::string json;
  std::string dtype = "f64";
  int64_t vocabulary = 61;
  uint64_t seed = 1;
};

// The layout, and what beside it tells cases apart.
std::string case_name(const VerifyRow& row) {
  return row.run.layout.text() + (row.run.layout.cp == 1 ? "" : format(" ulysses={}", row.run.ulysses)) +
         (row.run.sequence ? " sequence" : "") + (row.run.tp_overlap ? " tp_overlap" : "") +
         (row.run.zero == Zero::none ? "" : format(" zero{}", static_cast<int>(row.run.zero))) +
         (row.run.shard == 0 ? "" : format(" shard{}", row.run.shard)) +
         (row.run.slices == 1 ? "" : format(" slices={}", row.run.slices)) +
         (row.run.recompute == Recompute::none ? ""
                                               : format(" recompute={}", recompute_name(row.run.recompute)));
}

nlohmann::json json_of(const VerifyRow& r) {
  nlohmann::json j = {{"layout", r.run.layout.text()},
                      {"schedule", r.run.schedule},
                      {"sequence", r.run.sequence},
                      {"tp_overlap", r.run.tp_overlap},
                      {"zero", static_cast<int>(r.run.zero)},
                      {"shard", r.run.shard},
                      {"recompute", recompute_name(r.run.recompute)},
                      {"slices", r.run.slices},
                      {"ulysses", r.run.ulysses},
                      {"transport", "threads"},
                      {"max_rel_grad_err", r.max_rel_grad_err},
                      {"worst_tensor", r.worst_tensor},
                      {"first_tensor", r.first_tensor},
                      {"loss_err", r.loss_err},
                      {"grad_norm_err", r.grad_norm_err},
                      {"weights_err", r.weights_err},
                      {"replayed", r.replayed},
                      {"pass", r.pass},
                      {"seconds", r.seconds}};
  if (!r.error.empty()) j["error"] = r.error;
  return j;
}

// Of n cases, part "k/n" has each nth from the kth on, so that several processes or machines share them.
std::vector<VerifyCase> part_of(const std::vector<VerifyCase>& cases, const std::string& part) {
  size_t k = 0;
  size_t n = 0;
  std::istringstream text(part);
  char slash = ' ';
  if (!(text >> k >> slash >> n) || slash != '/' || !text.eof() || k < 1 || k > n || n > cases.size()) {
    throw Error("--part {} is not as in 3/16: the third of 16 parts of {} cases", part, cases.size());
  }
  std::vector<VerifyCase> own;
  for (size_t i = k - 1; i < cases.size(); i += n) own.push_back(cases[i]);
  return own;
}

std::vector<Layout> layouts_of(const Options& o, const ModelConfig& model) {
  if (o.layouts == "all" || o.layouts == "exhaustive") {
    const int ranks = o.config.ranks != 0 ? o.config.ranks : o.config.load().parallel.ranks;
    return layouts_of_model(model, ranks);
  }
  if (o.layouts.empty()) {
    throw Error("--layouts is empty: all, exhaustive, or a list such as \"dp=2;dp=4,ep=2\"");
  }
  std::vector<Layout> layouts;
  for (size_t at = 0; at < o.layouts.size();) {
    const std::string item = o.layouts.substr(at, o.layouts.find(';', at) - at);
    at += item.size() + 1;
    layouts.push_back(layout_of({.layout = item}));
  }
  return layouts;
}

std::vector<VerifyCase> cases_of(const Options& o, const TrainConfig& config) {
  const std::vector<Layout> layouts = layouts_of(o, config.model);
  const Coverage coverage = o.layouts == "exhaustive" ? Coverage::exhaustive : Coverage::pairs;
  const std::vector<VerifyCase> cases = verify_cases(config.model, layouts, coverage);
  return o.part.empty() ? cases : part_of(cases, o.part);
}

void print(const VerifyRow& r) {
  if (!r.error.empty()) {
    std::printf("%-50s %-11s FAILED  %s\n", case_name(r).c_str(), r.run.schedule.c_str(), r.error.c_str());
    return;
  }
  std::printf("%-50s %-11s %-7s %9.2e  %-36s %9.2e %9.2e %8lld %7.2f s\n", case_name(r).c_str(),
              r.run.schedule.c_str(), r.pass ? "ok" : "FAILED", r.max_rel_grad_err, r.worst_tensor.c_str(),
              r.loss_err, r.weights_err, static_cast<long long>(r.replayed), r.seconds);
  if (!r.first_tensor.empty()) {
    std::printf("  the first that differs, from the loss: %s\n", r.first_tensor.c_str());
  }
  std::fflush(stdout);
}

void run_verify(const Options& o) {
  refuse_launcher("verify");
  // Of the config's own layout only the number of ranks matters here.
  ConfigOptions of_one_rank = o.config;
  of_one_rank.set.insert(of_one_rank.set.begin(), {"parallel.layout=", "parallel.ulysses=0"});
  of_one_rank.ranks = 1;
  const TrainConfig config = of_one_rank.load();
  start_device(config);
  VerifyOptions options;
  options.model = config.model;
  options.model.vocabulary = o.vocabulary;
  options.documents = !config.data.documents.empty();
  options.device = config.train.device;
  const bool on_cpu = options.device == Device::Kind::cpu;  // GPUs with narrow weights compute in bf16
  options.narrow = o.dtype == "bf16" || (on_cpu && config.train.weights == KeptWeights::bf16);
  // Beside one rank that rounds as well, two roundings would be taken for one layout's error.
  if (o.dtype == "bf16") options.reference = Device::Kind::cpu;
  options.products = config.train.products;
  options.dtype = o.dtype == "f64" ? DType::f64 : DType::f32;
  if (o.dtype == "bf16" && on_cpu) {
    throw Error("--dtype bf16 is for GPUs, which compute in it: --device cuda");
  }
  options.seed = o.seed;
  const std::vector<VerifyCase> cases = cases_of(o, config);
  const bool table = o.json != "-";
  if (table && !o.json.empty()) check_can_write(o.json);
  if (table) {
    std::printf("%-50s %-11s %-7s %9s  %-36s %9s %9s %8s\n", "layout", "schedule", "", "gradient",
                "worst tensor", "loss", "weights", "replayed");
  }
  int failed = 0;
  nlohmann::json rows = nlohmann::json::array();
  verify(options, cases, [&](const VerifyRow& row) {
    failed += row.pass ? 0 : 1;
    rows.push_back(json_of(row));
    if (table) print(row);
  });
  const nlohmann::json result = {
      {"reference", options.reference ? "dp=1, sequential, on the CPU" : "dp=1, sequential"},
      {"layouts", rows},
      {"failed", failed}};
  if (o.json == "-") {
    std::printf("%s\n", result.dump(2).c_str());
  } else if (!o.json.empty()) {
    std::ofstream file(o.json);
    file << result.dump(2) << "\n" << std::flush;
    if (!file) throw Error("cannot write {}", o.json);
  }
  if (failed > 0) throw Error("{} of {} layouts differ from one rank", failed, rows.size());
}

}  // namespace

void add_verify(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("verify", "Check that every layout gives one rank's gradients");
  options->config.add_to(command);
  command.add_option(
      "--layouts", options->layouts,
      "all (each with some of the other settings, so that any two meet), exhaustive (with all of them), or "
      "a list: \"dp=2;dp=4,ep=2\"");
  command.add_option("--part", options->part, "Of the cases only a part: 3/16 is the third of 16");
  command.add_option("--json", options->json, "Write the table as JSON to this file (-: standard output)");
  command.add_option("--dtype", options->dtype, "f64, f32, or on GPUs bf16 with f32 sums and master copies")
      ->check(CLI::IsMember({"f64", "f32", "bf16"}));
  command.add_option("--vocabulary", options->vocabulary, "Tokens of the random text")
      ->check(CLI::Range(2, 1 << 20));
  command.add_option("--seed", options->seed, "Of weights and tokens");
  command.footer(
      "Examples:\n"
      "  phalanx verify configs/demo_moe.toml --ranks 4 --layouts all\n"
      "  phalanx verify configs/llama_small.toml --ranks 4 --device cuda --dtype bf16 --set "
      "model.head_dim=8");
  command.callback([options] { run_verify(*options); });
}

}  // namespace phalanx
