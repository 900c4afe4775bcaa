// The bubble of a step, and its picture.
#include "phalanx/train/pipeline_history.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "phalanx/comm/transport/threads.h"
#include "phalanx/train/pipeline_picture.h"
#include "phalanx/train/report.h"
#include "tests/train/xml_reader.h"

namespace phalanx {
namespace {

using phalanx::testing::XmlReader;

constexpr int64_t kUnit = 1'000'000;  // ns of a unit of StepTimes
constexpr int64_t kStart = 5'000'000'000;

// A step that ran exactly as its simulation, in which `time` gives the times.
template <class Time>
PipelineRecord ran(const Schedule& schedule, const Time& time) {
  const Timeline timeline = simulate(schedule, time);
  PipelineRecord record = {.step = 41, .schedule = schedule};
  for (size_t r = 0; r < schedule.steps.size(); ++r) {
    record.ranks.emplace_back();
    for (size_t i = 0; i < schedule.steps[r].size(); ++i) {
      const auto ns = [](double t) { return kStart + static_cast<int64_t>(t * kUnit); };
      const StepSpan& span = timeline.spans[r][i];
      record.ranks[r].push_back({schedule.steps[r][i], ns(span.start), ns(span.start), ns(span.end)});
    }
  }
  return record;
}

TEST(Bubble, OfEvenStepsIsTheFormulas) {
  const StepTimes times = {.F = 2, .B = 4, .W = 2, .FB = 5};
  for (const ScheduleEntry* entry : schedule_entries()) {
    if (entry->name == "sequential" || entry->name == "overlapped" || entry->name == "zb-v") continue;
    const Schedule schedule = make_schedule(entry->name, {.ranks = 4, .microbatches = 12});
    const Bubble b = bubble_of(ran(schedule, times));
    EXPECT_NEAR(b.measured, 1e-3 * bubble_formula(schedule, times), 1e-9) << entry->name;
    EXPECT_NEAR(b.simulated, b.measured, 1e-9) << entry->name;
    EXPECT_NEAR(b.formula, b.measured, 1e-9) << entry->name;
    EXPECT_NEAR(b.makespan, 1e-3 * simulate(schedule, times).makespan, 1e-9) << entry->name;
  }
}

TEST(Bubble, OfSlicesIsTheFormulasToo) {
  const StepTimes times = {.F = 2, .B = 4, .W = 2, .FB = 6};
  for (const char* name : {"gpipe", "1f1b"}) {
    const Schedule schedule = make_schedule(name, {.ranks = 4, .microbatches = 8, .slices = 2});
    const Bubble b = bubble_of(ran(schedule, [&](int r, size_t i) {
      return times.of(schedule.steps[static_cast<size_t>(r)][i].op) / 2;
    }));
    EXPECT_NEAR(b.measured, 1e-3 * 3 * (2 + 4) / 2, 1e-9) << name;
    EXPECT_NEAR(b.formula, b.measured, 1e-9) << name;
    EXPECT_NEAR(b.mean.B, 4e-3, 1e-9) << name;
  }
}

TEST(Bubble, OfUnevenStepsIsTheSimulations) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const Schedule schedule = make_schedule("zb-h1", {.ranks = 3, .microbatches = 7});
  std::vector<std::vector<double>> times;
  for (const Steps& steps : schedule.steps) {
    times.emplace_back();
    for (size_t i = 0; i < steps.size(); ++i) times.back().push_back(1 + random() % 9);
  }
  PipelineRecord record = ran(schedule, [&](int r, size_t i) { return times[static_cast<size_t>(r)][i]; });
  const double before = bubble_of(record).measured;
  EXPECT_NEAR(bubble_of(record).simulated, before, 1e-9);
  // All ranks come late to their last step, as if a message had taken so long.
  for (auto& steps : record.ranks) {
    steps.back().begin_ns += 3 * kUnit;
    steps.back().end_ns += 3 * kUnit;
  }
  EXPECT_NEAR(bubble_of(record).measured, before + 3e-3, 1e-9);
  EXPECT_NEAR(bubble_of(record).simulated, before, 1e-9);
}

TEST(PipelineHistory, TellsTheMedianOfTheLastSteps) {
  const Schedule schedule = make_schedule("1f1b", {.ranks = 2, .microbatches = 3});
  run_thread_ranks({.ranks = 2}, [&](Group& world) {
    Mesh mesh(world, {.pp = 2});
    PipelineHistory history;
    EXPECT_FALSE(history.median(schedule, mesh.group(Axis::pp), 0));
    for (int64_t step = 0; step < 40; ++step) {
      const double seconds = step < 20 ? 100.0 : static_cast<double>((step * 7) % 40);
      const auto other = static_cast<double>(world.rank());  // rank 0's times count
      history.add(step, other > 0 ? -seconds : seconds, {{schedule.steps[0][0], step, step, step + 1}});
    }
    const auto record = history.median(schedule, mesh.group(Axis::pp), 1000);
    ASSERT_EQ(record.has_value(), world.rank() == 0);
    if (!record) return;
    std::vector<int64_t> last;
    for (int64_t step = 25; step < 40; ++step) last.push_back((step * 7) % 40);
    std::ranges::sort(last);
    EXPECT_EQ((record->step * 7) % 40, last[7]);
    ASSERT_EQ(record->ranks.size(), 2u);
    for (const auto& steps : record->ranks) {
      EXPECT_EQ(steps.at(0).begin_ns, record->step + 1000);
      EXPECT_EQ(steps.at(0).end_ns, record->step + 1001);
    }
  });
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++n;
  return n;
}

TEST(PipelinePicture, HasARowARankABlockAStepAndBothBubbles) {
  const StepTimes times = {.F = 2, .B = 4, .W = 2, .FB = 5};
  for (const char* name : {"1f1b", "zb-h1", "dualpipe-v", "interleaved"}) {
    const Schedule schedule = make_schedule(name, {.ranks = 2, .microbatches = 4});
    const PipelineRecord record = ran(schedule, times);
    const std::string html = pipeline_section(record);
    const std::string figure =
        html.substr(html.find("<figure>"), html.find("</figure>") + 9 - html.find("<figure>"));
    const std::string table =
        html.substr(html.find("<table>"), html.find("</table>") + 8 - html.find("<table>"));
    EXPECT_EQ(XmlReader(figure).fault(), "");
    EXPECT_EQ(XmlReader(table).fault(), "");
    EXPECT_EQ(count(figure, "<g data-rank="), 2u);
    for (const Steps& steps : schedule.steps) {
      for (const Step& step : steps) {
        std::string text = step_text(step, schedule.chunks_per_rank > 1) + ": ";
        if (const size_t at = text.find('&'); at != text.npos) text.replace(at, 1, "&amp;");
        EXPECT_GE(count(figure, "<title>" + text), 1u) << text;
      }
    }
    EXPECT_GE(count(figure, "class=\"bubble\""), 2u) << name;  // one is the legend's
    const auto row = [&](const std::string& what) { return html.substr(html.find("<td>" + what)); };
    const std::string ms = std::to_string(bubble_formula(schedule, times));
    const std::string shown = "<td>" + ms.substr(0, ms.find('.') + 4) + "</td>";
    for (const char* what : {"measured", "simulated", "by formula"}) {
      EXPECT_LT(row(what).find(shown), row(what).find("</tr>")) << name << " " << what;
    }
  }
  EXPECT_EQ(pipeline_section({}), "");
}

TEST(PipelinePicture, IsOnThePageOfARunWithAPipeline) {
  TrainingHistory h = {.title = "run"};
  EXPECT_EQ(count(report_html(h), "<h2>Pipeline</h2>"), 0u);
  h.pipeline = ran(make_schedule("1f1b", {.ranks = 2, .microbatches = 2}), StepTimes());
  const std::string html = report_html(h);
  EXPECT_EQ(count(html, pipeline_section(h.pipeline)), 1u);
  EXPECT_EQ(count(html, "<figcaption>Step 41 "), 1u);
  EXPECT_EQ(count(html, "<td>3.000</td>"), 3u);  // (P - 1)(F + B)
}

}  // namespace
}  // namespace phalanx
