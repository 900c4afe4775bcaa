// phalanx schedule: a pipeline schedule as lists of steps, checked, timed and drawn.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/commands.h"
#include "apps/schedule_drawing.h"
#include "phalanx/base/error.h"
#include "phalanx/base/file.h"
#include "phalanx/parallel/schedule/check.h"

namespace phalanx {
namespace {

struct Options {
  std::string name;
  ScheduleShape shape;
  std::string times = "1,2,1,3";
  std::string json;
  std::string svg;
};

StepTimes times_of(const std::string& text) {
  std::vector<double> values;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at < end) {
    double value = 0;
    const auto [next, error] = std::from_chars(at, end, value);
    if (error != std::errc() || !std::isfinite(value) || value <= 0) break;
    values.push_back(value);
    if (next != end && *next != ',') break;
    at = next == end ? end : next + 1;
    if (next != end && at == end) break;
  }
  if (at != end || values.size() != 4 || text.ends_with(',')) {
    throw Error("--times is \"{}\": four positive numbers, F,B,W,FB, as in 1,2,1,3", text);
  }
  const StepTimes times = {.F = values[0], .B = values[1], .W = values[2], .FB = values[3]};
  if (times.W >= times.B) {
    throw Error("--times {}: W ({}) is a part of B ({}), so it must be less", text, times.W, times.B);
  }
  return times;
}

nlohmann::ordered_json json_of(const Step& step) {
  nlohmann::ordered_json j = {{"op", op_name(step.op)},
                              {"chunk", step.chunk},
                              {"microbatch", step.microbatch},
                              {"b_chunk", nullptr},
                              {"b_microbatch", nullptr}};
  if (step.op == StepOp::FB) {
    j["b_chunk"] = step.b_chunk;
    j["b_microbatch"] = step.b_microbatch;
  }
  return j;
}

std::string json_text(const Schedule& s, const StepTimes& times, const Timeline& t, const std::string& stop) {
  nlohmann::ordered_json steps = nlohmann::ordered_json::array();
  for (const Steps& list : s.steps) {
    nlohmann::ordered_json rank = nlohmann::ordered_json::array();
    for (const Step& step : list) rank.push_back(json_of(step));
    steps.push_back(std::move(rank));
  }
  const nlohmann::ordered_json all = {
      {"name", s.name},
      {"ranks", s.ranks},
      {"chunks_per_rank", s.chunks_per_rank},
      {"microbatches", s.microbatches},
      {"slices", s.slices},
      {"steps", std::move(steps)},
      {"simulated",
       {{"F", times.F},
        {"B", times.B},
        {"W", times.W},
        {"FB", times.FB},
        {"makespan", t.makespan},
        {"idle", t.idle},
        {"peak_live", t.peak_live},
        {"peak_kept", t.peak_kept}}},
      {"formula_bubble", bubble_formula(s, times)},
      {"deadlock", stop.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(stop)}};
  return all.dump() + "\n";
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text << std::flush;
  if (!file) throw Error("cannot write {}", path);
}

// How the steps of the text are to be read.
std::string key_of(const Schedule& s) {
  const bool cut = s.slices > 1;
  const std::string what = cut ? "slice 0 of microbatch 3" : "microbatch 3";
  const char* number = cut ? "3.0" : "3";
  if (s.map == StageMap::both_ways) return format("F1.{}: {}, which goes in direction 1", number, what);
  if (s.chunks_per_rank > 1) return format("F1.{}: {} in chunk 1; times are a chunk's", number, what);
  return format("F{}: {}", number, what);
}

void print(const Schedule& s, const StepTimes& times, const Timeline& t) {
  const std::string cut = s.slices > 1 ? format(" of {} slices", s.slices) : "";
  std::printf("%s: %d ranks, %d stages, %d microbatches%s; F,B,W,FB take %g,%g,%g,%g; %s\n\n", s.name.c_str(),
              s.ranks, s.stages(), s.microbatches / s.slices, cut.c_str(), times.F, times.B, times.W,
              times.FB, key_of(s).c_str());
  std::printf("%s\n", timeline_text(s, t).c_str());
  std::printf("         idle   peak live   by formula   kept for W\n");
  for (int r = 0; r < s.ranks; ++r) {
    const auto i = static_cast<size_t>(r);
    std::printf("rank %-3d %-6g %-11d %-12d %d\n", r, t.idle[i], t.peak_live[i], peak_formula(s, r),
                t.peak_kept[i]);
  }
  const double worst = std::ranges::max(t.idle);
  std::printf("\nmakespan %g; bubble %g (%.1f %%), by formula %g; no deadlock\n", t.makespan, worst,
              100 * worst / t.makespan, bubble_formula(s, times));
}

void run_schedule(const Options& o) {
  const StepTimes times = times_of(o.times);
  const Schedule schedule = make_schedule(o.name, o.shape);
  for (const std::string& path : {o.json, o.svg}) {
    if (!path.empty() && path != "-") check_can_write(path);
  }
  const std::string stop = check_schedule(schedule);
  const Timeline timeline = simulate(schedule, times);
  if (o.json == "-") {
    std::printf("%s", json_text(schedule, times, timeline, stop).c_str());
  } else if (!o.json.empty()) {
    write_file(o.json, json_text(schedule, times, timeline, stop));
  }
  if (!o.svg.empty()) write_file(o.svg, timeline_svg(schedule, timeline));
  if (!stop.empty()) throw Error("schedule {}: {}", schedule.name, stop);
  if (o.json.empty() && o.svg.empty()) print(schedule, times, timeline);
}

}  // namespace

void add_schedule(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("schedule", "Show a pipeline schedule, its bubble and its peak");
  std::string names;
  for (const ScheduleEntry* entry : schedule_entries()) {
    names += (names.empty() ? "" : ", ") + std::string(entry->name);
  }
  command.add_option("name", options->name, names)->required();
  command
      .add_option("--stages", options->shape.ranks,
                  "Ranks of the pipeline; with chunks each has several of the model's stages")
      ->required();
  command.add_option("--microbatches", options->shape.microbatches, "Of one training step")->required();
  command.add_option("--chunks", options->shape.chunks, "Chunks a rank, for interleaved (2 unless given)")
      ->check(CLI::PositiveNumber);
  command
      .add_option("--slices", options->shape.slices,
                  "Cut each microbatch along its sequences; in lists slice s of microbatch m is m·slices + s")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      .add_option("--times", options->times,
                  "F,B,W,FB: time of a chunk's forward, backward, the weight gradients' part of it, and of "
                  "an overlapped pair, of whole microbatches")
      ->capture_default_str();
  command.add_option("--json", options->json,
                     "Write steps and times as JSON to this file (-: standard output)");
  command.add_option("--svg", options->svg, "Draw the timeline into this file");
  command.footer(
      "Examples:\n  phalanx schedule dualpipe --stages 4 --microbatches 8 --times 1,2,1,2.5\n"
      "  phalanx schedule 1f1b --stages 4 --microbatches 4 --slices 4");
  command.callback([options] { run_schedule(*options); });
}

}  // namespace phalanx
