#include "phalanx/train/report.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "phalanx/base/file.h"
#include "phalanx/base/text.h"
#include "phalanx/base/units.h"
#include "phalanx/train/pipeline_picture.h"
#include "phalanx/train/report_style.h"
#include "phalanx/train/svg.h"

namespace phalanx {
namespace {

using History = TrainingHistory;
using Points = std::vector<PlotPoint>;

constexpr std::string_view kNone = "–";  // where there is no value

std::string loss_text(double v) { return std::abs(v) < 1e4 ? format("{:.4f}", v) : number_text(v, 4); }

std::string count_text(int64_t n) { return grouped(static_cast<uint64_t>(std::max<int64_t>(n, 0))); }

// "12.6 M"
std::string rounded_count(int64_t n) {
  const auto v = static_cast<double>(n);
  if (n < 10000) return count_text(n);
  if (n < 1000000) return number_text(v / 1e3, 3) + " K";
  return n < 1000000000 ? number_text(v / 1e6, 3) + " M" : number_text(v / 1e9, 3) + " B";
}

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds) || seconds < 100) return number_text(seconds, 3) + " s";
  const auto whole = static_cast<uint64_t>(std::min(std::round(seconds), 1e15));
  if (whole < 3600) return format("{} min {} s", whole / 60, whole % 60);
  return format("{} h {} min", grouped(whole / 3600), whole / 60 % 60);
}

Points points_of(const History& h, double StepRecord::*value, double scale = 1) {
  Points out;
  for (const StepRecord& r : h.steps) out.push_back({static_cast<double>(r.step), r.*value * scale});
  return out;
}

double median_of(const Points& points) {
  return points.empty() ? std::numeric_limits<double>::quiet_NaN()
                        : running_median(points, 2 * points.size(), 1).back().y;
}

// ---- header -------------------------------------------------------------------------------------------

std::string tile(std::string_view name, std::string_view value, std::string_view small = "") {
  return format("<div><dt>{}</dt><dd>{}<small>{}</small></dd></div>\n", name, value, small);
}

std::string header(const History& h) {
  std::string out =
      format("<header><h1>{}</h1>\n<p class=\"sub\">{}</p>\n<dl>\n",
             h.title.empty() ? std::string("Training run") : xml_text(h.title), xml_text(h.machine));
  const bool sparse = h.active_parameters > 0 && h.active_parameters != h.parameters;
  out += tile(
      "Parameters", rounded_count(h.parameters),
      sparse ? format("{}; {} active a token", count_text(h.parameters), rounded_count(h.active_parameters))
             : count_text(h.parameters));
  out += tile("Steps", count_text(static_cast<int64_t>(h.steps.size())),
              format("in {}", duration_text(h.seconds)));
  out += tile("Training loss", h.steps.empty() ? std::string(kNone) : loss_text(h.steps.back().loss),
              "nats a token, last step");
  if (h.evaluations.empty()) {
    out += tile("Validation loss", kNone, "not evaluated");
  } else {
    const EvaluationRecord& last = h.evaluations.back();
    out += tile("Validation loss", loss_text(last.val_loss),
                format("nats a token, after step {}", count_text(last.step)));
  }
  const double speed = median_of(points_of(h, &StepRecord::tokens_per_s));
  out += tile("Tokens a second", h.steps.empty() ? std::string(kNone) : number_text(speed, 4),
              "median of all steps");
  return out + "</dl></header>\n";
}

// ---- charts over steps --------------------------------------------------------------------------------

// The window of a running median that still shows a run's shape; 0 for runs too short for one.
size_t median_window(size_t points) { return points < 40 ? 0 : std::clamp<size_t>(points / 40, 5, 500) | 1; }

// A line of every step and, for long runs, its running median over it.
std::vector<ChartLine> with_median(ChartLine line) {
  const size_t window = median_window(line.points.size());
  if (window == 0) return {line};
  ChartLine smooth = {.style = LineStyle::smooth, .colour = line.colour};
  smooth.name = format("median of {}", window);
  smooth.points = running_median(line.points, window, 400);
  line.style = LineStyle::raw;
  return {line, smooth};
}

std::string loss_section(const History& h) {
  if (h.steps.empty() && h.evaluations.empty()) return "<h2>Loss</h2>\n<p>No step was recorded.</p>\n";
  LineChart chart = {.title = "Training and validation", .unit = "nats a token"};
  if (!h.steps.empty()) {
    chart.lines = with_median({.name = "training",
                               .value = loss_text(h.steps.back().loss),
                               .points = points_of(h, &StepRecord::loss)});
    if (chart.lines.size() > 1) chart.lines[1].value = loss_text(chart.lines[1].points.back().y);
  }
  if (!h.evaluations.empty()) {
    ChartLine line = {.name = "validation",
                      .value = loss_text(h.evaluations.back().val_loss),
                      .style = LineStyle::dots,
                      .colour = 1};
    for (const EvaluationRecord& e : h.evaluations)
      line.points.push_back({static_cast<double>(e.step), e.val_loss});
    chart.lines.push_back(line);
  }
  return "<h2>Loss</h2>\n" + line_chart(chart);
}

// What is told of a small chart.
struct SmallChart {
  std::string title;
  std::string unit;
  double StepRecord::*value;
  std::string (*text)(double);
  double scale = 1;
  bool median = true;
};

std::string small_chart(const History& h, const SmallChart& small) {
  ChartLine line = {.value = small.text(h.steps.back().*small.value * small.scale),
                    .points = points_of(h, small.value, small.scale)};
  LineChart chart = {
      .title = small.title, .unit = small.unit, .width = 440, .height = 220, .label_width = 82};
  chart.lines = small.median ? with_median(line) : std::vector{line};
  chart.from_zero = true;
  return line_chart(chart);
}

// The heading of a section of small charts, whose lines have no room for names.
std::string small_heading(const History& h, std::string_view title) {
  const size_t window = median_window(h.steps.size());
  const std::string note = format("<p class=\"note\">Bold lines are medians of {} steps.</p>\n", window);
  return format("<h2>{}</h2>\n{}<div class=\"pair\">\n", title, window > 0 ? note : "");
}

std::string three_digits(double v) { return number_text(v, 3); }

std::string optimizer_section(const History& h) {
  if (h.steps.empty()) return "";
  return small_heading(h, "Optimizer") +
         small_chart(h, {"Learning rate", "", &StepRecord::lr, three_digits, 1, false}) +
         small_chart(h, {"Gradient norm", "before clipping", &StepRecord::grad_norm, three_digits}) +
         "</div>\n";
}

std::string speed_section(const History& h) {
  if (h.steps.empty()) return "";
  const auto tokens = [](double v) { return number_text(v, 4); };
  const auto percent = [](double v) { return std::isfinite(v) ? format("{:.1f} %", v) : number_text(v, 3); };
  return small_heading(h, "Speed") +
         small_chart(h, {"Tokens a second", "", &StepRecord::tokens_per_s, tokens}) +
         small_chart(h, {"Matrix-product speed", "% of peak", &StepRecord::gemm_share, percent, 100}) +
         "</div>\n";
}

// ---- experts ------------------------------------------------------------------------------------------

// Empty where the run had no such loss.
std::string other_loss(const History& h, const char* title, const char* unit, double StepRecord::*loss) {
  if (std::ranges::all_of(h.steps, [loss](const StepRecord& r) { return r.*loss == 0; })) return {};
  LineChart chart = {.title = title, .unit = unit, .height = 200};
  chart.lines = with_median(
      {.name = "last step", .value = loss_text(h.steps.back().*loss), .points = points_of(h, loss)});
  return line_chart(chart);
}

std::string expert_section(const History& h) {
  if (h.expert_tokens.empty()) {
    return "<h2>Experts</h2>\n<p>The model is dense: it has no experts whose load could be shown.</p>\n";
  }
  HeatMap map = {.title = "Expert load",
                 .unit = "relative to even",
                 .row_name = "MoE layer",
                 .column_name = "expert",
                 .note_name = "max/mean"};
  for (const std::vector<int64_t>& layer : h.expert_tokens) {
    const double sum = std::accumulate(layer.begin(), layer.end(), 0.0);
    std::vector<double> loads;
    for (const int64_t n : layer) {
      loads.push_back(static_cast<double>(n) * static_cast<double>(layer.size()) / sum);  // 0 ÷ 0: unknown
    }
    map.row_notes.push_back(sum > 0 ? format("{:.2f}", *std::ranges::max_element(loads))
                                    : std::string("unused"));
    map.rows.push_back(loads);
  }
  std::string out = "<h2>Experts</h2>\n" + heat_map(map);
  out +=
      other_loss(h, "Balance loss", "summed over MoE layers; 1 a layer is even", &StepRecord::balance_loss);
  return out + other_loss(h, "Router z-loss", "summed over MoE layers", &StepRecord::z_loss);
}

// ---- time ---------------------------------------------------------------------------------------------

// Of a part of `whole`: short runs are told in milliseconds.
std::string seconds_text(double seconds, double whole) {
  return whole < 10 ? format("{:.3f}", seconds) : format("{:.1f}", seconds);
}

std::string time_row(std::string_view mark, const std::string& name, double seconds, double whole) {
  return format("<tr><td>{}{}</td><td>{}</td><td>{:.1f}</td></tr>\n", mark, name,
                seconds_text(seconds, whole), 100 * seconds / whole);
}

std::string time_table(const StackedBar& bar, double whole) {
  std::string out =
      "<table><thead><tr><th scope=\"col\">phase</th><th scope=\"col\">seconds</th><th "
      "scope=\"col\">%</th></tr>"
      "</thead><tbody>\n";
  const auto mark = [](std::string_view style) {
    return format(
        "<svg viewBox=\"0 0 12 12\" aria-hidden=\"true\"><rect class=\"{}\" width=\"12\" height=\"12\" "
        "rx=\"2\"/></svg>",
        style);
  };
  for (const BarPart& part : bar.parts) {
    out += time_row(mark(format("f{}", part.colour)), part.name, part.value, whole);
  }
  out +=
      format("<tr class=\"whole\"><td>all</td><td>{}</td><td>100.0</td></tr>\n", seconds_text(whole, whole));
  if (bar.within.value > 0) {  // else it was not measured
    out += time_row(mark("within"), bar.within.name + " (within the above)", bar.within.value, whole);
  }
  return out + "</tbody></table>\n";
}

std::string time_section(const History& h) {
  const auto usable = [](double s) { return std::isfinite(s) && s > 0 ? std::min(s, 1e12) : 0; };
  StackedBar bar = {.title = "Time by phase", .unit = "of rank 0"};
  const PhaseSeconds& p = h.phases;
  bar.parts = {{"waiting for other stages", usable(p.wait), 8},
               {"forward", usable(p.forward), 0},
               {"backward", usable(p.backward), 1},
               {"forward and backward overlapped", usable(p.overlap), 2},
               {"reduction", usable(p.reduce), 3},
               {"optimizer", usable(p.update), 4}};
  double whole = 0;
  for (const BarPart& part : bar.parts) whole += part.value;
  bar.parts.push_back({"other training (batches, progress)", usable(h.seconds - whole), 7});
  bar.parts.push_back({"evaluation", usable(h.evaluate_seconds), 5});
  bar.parts.push_back({"saving", usable(h.save_seconds), 6});
  bar.within = {"waiting for other ranks", usable(h.wait_seconds), 0};
  whole = 0;
  for (const BarPart& part : bar.parts) whole += part.value;
  if (!(whole > 0)) return "<h2>Time</h2>\n<p>No time was measured.</p>\n";
  return "<h2>Time</h2>\n" + stacked_bar(bar) + time_table(bar, whole);
}

// ---- memory -------------------------------------------------------------------------------------------

std::string bytes_text(int64_t bytes) {
  return human_bytes(static_cast<uint64_t>(std::max<int64_t>(bytes, 0)));
}

std::string memory_row(const std::string& name, const std::string& device, const std::string& peak,
                       const std::string& reserved) {
  return format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n", name, device, peak, reserved);
}

// The ranks that had most, and what the account says of rank 0.
std::string memory_section(const History& h) {
  if (h.memory.empty()) return "";
  constexpr size_t kMostRows = 64;
  const MemoryAccount& e = h.expected_memory;
  StackedBar bar = {.title = "Memory of rank 0 by kind", .unit = "expected of a step"};
  bar.parts = {{"weights", static_cast<double>(e.weights), 0},
               {"gradients", static_cast<double>(e.gradients_then()), 1},
               {"optimizer", static_cast<double>(e.optimizer), 2},
               {"batch", static_cast<double>(e.batch), 7},
               {"saved for backward", static_cast<double>(e.activations), 3},
               {"working", static_cast<double>(e.working), 4}};
  std::vector<size_t> ranks(h.memory.size());
  std::iota(ranks.begin(), ranks.end(), size_t{0});
  std::ranges::stable_sort(ranks, [&](size_t a, size_t b) { return h.memory[a].peak > h.memory[b].peak; });
  std::string out = "<h2>Memory</h2>\n";
  if (e.total() > 0) out += stacked_bar(bar);
  out +=
      "<table><thead><tr><th scope=\"col\">rank</th><th scope=\"col\">device</th><th scope=\"col\">in use, "
      "at "
      "most</th><th scope=\"col\">taken</th></tr></thead><tbody>\n";
  for (size_t i = 0; i < std::min(ranks.size(), kMostRows); ++i) {
    const RankMemory& m = h.memory[ranks[i]];
    out += memory_row(format("{}", ranks[i]), xml_text(m.device), bytes_text(m.peak), bytes_text(m.reserved));
  }
  out += memory_row("0, expected", "", bytes_text(e.total()), "") + "</tbody></table>\n";
  if (ranks.size() <= kMostRows) return out;
  return out + format("<p class=\"note\">Of {} ranks those that had most.</p>\n", ranks.size());
}

}  // namespace

std::string report_html(const TrainingHistory& h) {
  std::string out = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
  out += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
  out +=
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "script-src 'unsafe-inline'\">\n";
  out += format("<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n",
                h.title.empty() ? std::string("Training run") : xml_text(h.title), report_style());
  out += header(h) + "<main>\n" + loss_section(h) +
         other_loss(h, "Multi-token prediction", "nats a token, mean over depths", &StepRecord::mtp_loss) +
         expert_section(h) + time_section(h) + memory_section(h) + pipeline_section(h.pipeline) +
         optimizer_section(h) + speed_section(h);
  if (!h.config.empty()) {
    out += format("<details><summary>Configuration</summary>\n<pre>\n{}</pre>\n</details>\n",
                  xml_text(h.config));
  }
  return out + format("</main>\n<script>{}</script>\n</body>\n</html>\n", report_script());
}

void write_report(const std::string& path, const TrainingHistory& history) {
  write_over(path, report_html(history));
}

}  // namespace phalanx
