#include "phalanx/train/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <sstream>

#include "phalanx/base/error.h"
#include "phalanx/base/file.h"
#include "phalanx/base/text.h"
#include "phalanx/model/utf8.h"
#include "phalanx/train/svg.h"
#include "tests/temporary_directory.h"
#include "tests/train/xml_reader.h"

namespace phalanx {
namespace {

using phalanx::testing::TemporaryDirectory;
using phalanx::testing::XmlReader;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

TrainingHistory history(int64_t steps, size_t layers, size_t experts, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> unit(0, 1);
  TrainingHistory h = {.title = "tiny", .config = "[model]\nwidth = 64\n", .machine = "4 ranks"};
  h.parameters = 12345678;
  h.active_parameters = 2345678;
  h.seconds = 100;
  h.phases = {.forward = 20, .backward = 40, .overlap = 15, .reduce = 10, .update = 5};
  h.wait_seconds = 12.5;
  h.evaluate_seconds = 20;
  h.save_seconds = 5;
  for (int64_t i = 0; i < steps; ++i) {
    const double done = static_cast<double>(i) / static_cast<double>(steps);
    h.steps.push_back({.step = i,
                       .loss = 1.5 + 2.7 * std::exp(-9 * done) + 0.05 * unit(random),
                       .balance_loss = 2 + unit(random),
                       .lr = 1e-3 * (1 - 0.9 * done),
                       .grad_norm = 0.5 + unit(random),
                       .tokens_per_s = 40000 + 900 * unit(random),
                       .gemm_share = 0.5 + 0.1 * unit(random),
                       .z_loss = 1 + unit(random),
                       .mtp_loss = 3 + unit(random)});
    if (i % 50 == 49) h.evaluations.push_back({i + 1, 1.6 + 2.5 * std::exp(-9 * done)});
  }
  for (size_t l = 0; l < layers; ++l) {
    h.expert_tokens.emplace_back();
    for (size_t e = 0; e < experts; ++e)
      h.expert_tokens.back().push_back(1 + static_cast<int64_t>(random() % 10000));
  }
  return h;
}

// Says what is missing, but not the whole page.
::testing::AssertionResult has(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return ::testing::AssertionSuccess() << "it has " << part;
  return ::testing::AssertionFailure() << "it lacks " << part;
}

// Every text that stands between the two.
std::vector<std::string> between(const std::string& text, const std::string& before,
                                 const std::string& after) {
  std::vector<std::string> out;
  for (size_t at = 0; (at = text.find(before, at)) != std::string::npos;) {
    at += before.size();
    out.push_back(text.substr(at, text.find(after, at) - at));
  }
  return out;
}

// What <text> elements of that class say.
std::vector<std::string> texts(const std::string& svg, const std::string& attribute) {
  std::vector<std::string> out;
  for (const std::string& text : between(svg, "<text " + attribute, "</text>")) {
    out.push_back(text.substr(text.find('>') + 1));
  }
  return out;
}

std::vector<std::string> elements(const std::string& html, const std::string& name) {
  std::vector<std::string> out;
  for (const std::string& inside : between(html, "<" + name, "</" + name + ">")) {
    out.push_back(format("<{}{}</{}>", name, inside, name));
  }
  return out;
}

// The figure with that caption.
std::string figure(const std::string& html, const std::string& title) {
  const size_t at = html.find("<figure><figcaption>" + title + " ");
  if (at == std::string::npos) return "";
  return html.substr(at, html.find("</figure>", at) - at);
}

// What holds for every report.
void check_page(const std::string& html) {
  EXPECT_EQ(utf8_prefix(html), html.size());
  EXPECT_LT(html.size(), 300000U);
  for (const char* name : {"svg", "figure", "table"}) {
    for (const std::string& element : elements(html, name)) EXPECT_EQ(XmlReader(element).fault(), "");
  }
  for (const std::string& d : between(html, " d=\"", "\"")) {
    EXPECT_EQ(d.find_first_not_of("MmHhVvLlz0123456789.- "), std::string::npos) << d;
  }
  for (const std::string& line : between(html, "class=\"line ", ">")) {
    std::string d = between(line, " d=\"", "\"").at(0);
    std::ranges::replace_if(
        d, [](char c) { return c == 'M' || c == 'h'; }, ' ');
    std::istringstream numbers(d);
    double coordinate = 0;
    while (numbers >> coordinate) EXPECT_TRUE(coordinate >= 0 && coordinate <= 900) << coordinate;
    EXPECT_TRUE(numbers.eof()) << d;
  }
  for (const char* outside : {"http:", "https:", "src=", "href=", "url(", "@import"}) {
    EXPECT_FALSE(has(html, outside));
  }
}

TEST(Report, LabelsTheLastValueOfEveryRecord) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (const int64_t steps : {1, 2, 39, 40, 3000}) {
    TrainingHistory h = history(steps, 2, 4, seed);
    h.evaluations.push_back({steps, 1.98768});
    const std::string html = report_html(h);
    check_page(html);
    const auto label = [&](const std::string& chart, const std::string& value) {
      EXPECT_TRUE(has(figure(html, chart), "class=\"value\">" + value + "<")) << steps;
    };
    const StepRecord& last = h.steps.back();
    label("Training and validation", format("{:.4f}", last.loss));
    label("Training and validation", "1.9877");
    label("Balance loss", format("{:.4f}", last.balance_loss));
    label("Router z-loss", format("{:.4f}", last.z_loss));
    label("Multi-token prediction", format("{:.4f}", last.mtp_loss));
    label("Gradient norm",
          last.grad_norm < 1 ? format("{:.3f}", last.grad_norm) : format("{:.2f}", last.grad_norm));
    const std::string tokens = format("{:.0f}", last.tokens_per_s);
    label("Tokens a second", tokens.substr(0, 2) + "," + tokens.substr(2));
    label("Matrix-product speed", format("{:.1f} %", 100 * last.gemm_share));
  }
  TrainingHistory h = history(3, 0, 0, seed);
  h.steps.back().lr = 3.04e-4;
  EXPECT_TRUE(has(figure(report_html(h), "Learning rate"), ">3.04e-4<"));
}

TEST(Report, LabelsDoNotOverlap) {
  for (const double loss : {1.0, 2.0, 3.0}) {
    TrainingHistory h = history(200, 0, 0, 1);
    for (size_t i = 100; i < 200; ++i) h.steps[i].loss = loss;
    h.steps[0].loss = 1;
    h.steps[1].loss = 3;
    h.evaluations = {{0, 2}, {200, loss}};
    std::vector<double> y;
    for (const std::string& key :
         between(figure(report_html(h), "Training and validation"), "key\" d=\"M", "h8")) {
      y.push_back(std::stod(key.substr(key.find(' '))));
    }
    ASSERT_EQ(y.size(), 3U);
    for (size_t i = 1; i < 3; ++i) EXPECT_GT(y[i], y[i - 1] + 15) << loss;
    EXPECT_TRUE(y[0] > 5 && y[2] < 310) << loss;
  }
}

TEST(Report, HeaderTellsTheRun) {
  const std::string html = report_html(history(200, 2, 4, 1));
  for (const char* text : {"<h1>tiny</h1>", "4 ranks", "<dd>12.3 M<", "12,345,678", "2.35 M active",
                           "<dd>200<", "in 1 min 40 s", "median of all steps", "after step 200"}) {
    EXPECT_TRUE(has(html, text));
  }
}

TEST(Report, TextIsEscaped) {
  TrainingHistory h = history(3, 0, 0, 1);
  const std::string bad = "</pre><script>alert(\"1\" & '2')</script> caf\xc3\xa9 \xff\x01 \xed\xa0\x80 end";
  const std::string good =
      "&lt;/pre&gt;&lt;script&gt;alert(&quot;1&quot; &amp; &#39;2&#39;)&lt;/script&gt; caf\xc3\xa9 "
      "\ufffd\ufffd "
      "\ufffd\ufffd\ufffd end";
  h.title = h.machine = h.config = bad;
  const std::string html = report_html(h);
  check_page(html);
  EXPECT_FALSE(has(html, "alert(\""));
  EXPECT_EQ(elements(html, "script").size(), 1U);
  EXPECT_TRUE(has(html, "<title>" + good + "</title>"));
  EXPECT_TRUE(has(html, "<h1>" + good + "</h1>"));
  EXPECT_TRUE(has(html, "<pre>\n" + good + "</pre>"));
  EXPECT_TRUE(has(html, "<summary>Configuration</summary>\n<pre>\n" + good + "</pre>"));
  EXPECT_EQ(between(html, "alert(&quot;", "1").size(), 4U);
}

TEST(Report, StaysSmall) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  TrainingHistory h = history(100000, 61, 384, seed);
  for (int i = 0; i < 3000; ++i) h.steps[random() % h.steps.size()].loss = i % 2 == 0 ? kNaN : 1e9;
  for (int i = 0; i < 3000; ++i) h.steps[random() % h.steps.size()].grad_norm = i % 2 == 0 ? kNaN : 1e9;
  const std::string html = report_html(h);
  check_page(html);
  EXPECT_TRUE(has(html, "Each cell shows the largest of 3 neighbours."));
}

TEST(Report, ValuesThatAreNotFiniteAreGaps) {
  TrainingHistory h = history(20, 0, 0, 1);
  const auto line = [&] {
    return between(figure(report_html(h), "Training and validation"), "class=\"line s0", ">");
  };
  EXPECT_EQ(std::ranges::count(line().at(0), 'M'), 1);
  h.steps[7].loss = kNaN;
  h.steps[9].loss = kInf;
  EXPECT_EQ(std::ranges::count(line().at(0), 'M'), 3);
  EXPECT_EQ(between(line().at(0), "h0", "M").size(), 1U);  // step 8 is alone, a dot
  const std::string html = report_html(h);
  check_page(html);
  EXPECT_TRUE(
      has(figure(html, "Training and validation"), "× 2 values are not finite, the first at step 7."));
  EXPECT_FALSE(has(figure(html, "Gradient norm"), "not finite"));
  h.steps.back().loss = kNaN;
  EXPECT_TRUE(has(report_html(h), "class=\"value\">nan<"));
  for (StepRecord& r : h.steps)
    r = {.step = r.step, .loss = kNaN, .lr = kNaN, .grad_norm = kInf, .tokens_per_s = kNaN};
  check_page(report_html(h));
  EXPECT_TRUE(line().empty());
}

TEST(Report, ASpikeIsMarkedAndDoesNotSqueezeTheAxis) {
  TrainingHistory h = history(1000, 0, 0, 1);
  const auto top = [&] {
    const std::string frame =
        between(figure(report_html(h), "Training and validation"), "data-frame=\"", "\"").at(0);
    return std::stod(frame.substr(frame.rfind(' ')));
  };
  const double before = top();
  EXPECT_GT(before, 4.2);
  EXPECT_FALSE(has(report_html(h), "class=\"beyond\""));
  h.steps[812].loss = 123456;
  h.steps[813].loss = 99;
  EXPECT_NEAR(top(), before, 0.1);
  EXPECT_TRUE(has(figure(report_html(h), "Training and validation"),
                  "▲ 2 values lie beyond the axis, the furthest 123,456 at step 812."));
  EXPECT_TRUE(has(report_html(h), "class=\"beyond\""));
}

TEST(Report, HeatMapShowsLoadRelativeToEven) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  TrainingHistory h = history(3, 3, 6, seed);
  h.expert_tokens[1].assign(6, 0);
  h.expert_tokens[2] = {300, 100, 100, 100, 0, 0};
  const std::string map = figure(report_html(h), "Expert load");
  std::string first;
  const std::vector<int64_t>& layer = h.expert_tokens[0];
  const double mean = static_cast<double>(std::accumulate(layer.begin(), layer.end(), int64_t{0})) / 6;
  for (const int64_t n : layer)
    first += format(first.empty() ? "{:.2f}" : " {:.2f}", static_cast<double>(n) / mean);
  EXPECT_EQ(between(map, "data-loads=\"", "\""),
            (std::vector<std::string>{first, "– – – – – –", "3.00 1.00 1.00 1.00 0.00 0.00"}));
  EXPECT_EQ(texts(map, "class=\"value\""),
            (std::vector<std::string>{format("{:.2f}", static_cast<double>(std::ranges::max(layer)) / mean),
                                      "unused", "3.00"}));
  size_t numbers = 0;
  for (const char* ink : {"weak", "middle", "strong"})
    numbers += texts(map, format("class=\"{}\"", ink)).size();
  EXPECT_EQ(numbers, 18U);
  for (const char* legend : {">0<", ">1, even<", ">2 or more<"}) EXPECT_TRUE(has(map, legend));
}

// Of the third layer above: which cells have which colour, and how strong.
TEST(Report, HeatMapColours) {
  TrainingHistory h = history(1, 0, 0, 1);
  h.expert_tokens = {{300, 100, 100, 150, 50, 0, 0, 100}};
  const std::string map = figure(report_html(h), "Expert load");
  const std::string row = map.substr(map.find("data-loads"), map.find("</g>") - map.find("data-loads"));
  EXPECT_TRUE(has(row, "class=\"above\" stroke-opacity=\"1\" d=\"M0 0h0.975\""));    // 3
  EXPECT_TRUE(has(row, "class=\"above\" stroke-opacity=\"0.5\" d=\"M3 0h0.975\""));  // 1.5
  EXPECT_TRUE(has(row, "class=\"below\" stroke-opacity=\"0.5\" d=\"M4 0h0.975\""));
  EXPECT_TRUE(has(row, "class=\"below\" stroke-opacity=\"1\" d=\"M5 0h0.975M6 0h0.975\""));
  EXPECT_EQ(between(row, "stroke-opacity", "/").size(), 4U);
}

TEST(Report, ADenseModelHasNoHeatMap) {
  const std::string html = report_html(history(3, 0, 0, 1));
  EXPECT_TRUE(has(html, "The model is dense"));
  EXPECT_EQ(figure(html, "Expert load"), "");
}

TEST(Report, TimeByPhaseAddsUp) {
  const std::string html = report_html(history(3, 0, 0, 1));
  const auto row = [](const std::string& name, const std::string& seconds, const std::string& percent) {
    return format("{}</td><td>{}</td><td>{}</td>", name, seconds, percent);
  };
  EXPECT_TRUE(has(html, row("forward", "20.0", "16.0")));
  EXPECT_TRUE(has(html, row("backward", "40.0", "32.0")));
  EXPECT_TRUE(has(html, row("forward and backward overlapped", "15.0", "12.0")));
  EXPECT_TRUE(has(html, row("reduction", "10.0", "8.0")));
  EXPECT_TRUE(has(html, row("optimizer", "5.0", "4.0")));
  EXPECT_TRUE(has(html, row("other training (batches, progress)", "10.0", "8.0")));
  EXPECT_TRUE(has(html, row("evaluation", "20.0", "16.0")));
  EXPECT_TRUE(has(html, row("saving", "5.0", "4.0")));
  EXPECT_TRUE(has(html, row("all", "125.0", "100.0")));
  EXPECT_TRUE(has(html, row("waiting for other ranks (within the above)", "12.5", "10.0")));
  const std::string bar = figure(html, "Time by phase");
  double width = 0;
  for (const std::string& part : between(bar, "<rect class=\"f", "height")) {
    width += std::stod(between(part, "width=\"", "\"").at(0)) + 2;
  }
  EXPECT_NEAR(width, 900, 0.5);
  EXPECT_TRUE(has(bar, "class=\"within\" x=\"0\" y=\"40\" width=\"90.0\""));
}

TEST(Report, WaitingThatNobodyMeasuredIsNotShown) {
  TrainingHistory h = history(3, 0, 0, 1);
  h.wait_seconds = 0;
  EXPECT_FALSE(has(report_html(h), "waiting for other ranks"));
}

TEST(Report, AnEmptyHistoryIsAPage) {
  const std::string html = report_html({});
  check_page(html);
  for (const char* text : {"Training run", "No step was recorded", "No time was measured", "not evaluated"}) {
    EXPECT_TRUE(has(html, text));
  }
  EXPECT_EQ(elements(html, "svg").size(), 0U);
  TrainingHistory evaluated;
  evaluated.evaluations = {{0, 4.25}};
  check_page(report_html(evaluated));
  EXPECT_TRUE(has(report_html(evaluated), "class=\"value\">4.2500<"));
}

// Numbers of any bits at all.
TEST(Report, AnyHistoryIsAPage) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const auto number = [&] {
    return random() % 4 == 0 ? std::bit_cast<double>(random()) : static_cast<double>(random() % 9);
  };
  const auto whole = [&] { return static_cast<int64_t>(random() >> random() % 64); };
  for (int i = 0; i < 60; ++i) {
    TrainingHistory h = {.parameters = whole(), .active_parameters = whole(), .seconds = number()};
    for (uint64_t s = random() % 70; s > 0; --s) {
      h.steps.push_back({whole(), number(), number(), number(), number(), number(), number()});
    }
    for (uint64_t e = random() % 5; e > 0; --e) h.evaluations.push_back({whole(), number()});
    for (uint64_t l = random() % 4; l > 0; --l) {
      h.expert_tokens.emplace_back(random() % 50);
      for (int64_t& n : h.expert_tokens.back()) n = whole();
    }
    h.phases = {number(), number(), number(), number(), number()};
    h.wait_seconds = number();
    h.evaluate_seconds = number();
    h.save_seconds = number();
    check_page(report_html(h));
  }
}

TEST(Report, IsWrittenOverAnOlderOne) {
  const TemporaryDirectory dir;
  const std::string path = dir / "report.html";
  write_report(path, history(500, 2, 4, 1));
  write_report(path, history(3, 2, 4, 2));
  EXPECT_EQ(read_text(path, 1 << 20), report_html(history(3, 2, 4, 2)));
}

TEST(Report, AFailureToWriteNamesPathAndCause) {
  const TemporaryDirectory dir;
  EXPECT_THAT([&] { write_report(dir / "no/report.html", {}); },
              ThrowsMessage<Error>(HasSubstr("no/report.html: No such file or directory")));
  EXPECT_THAT([&] { write_report(dir.path(), {}); }, ThrowsMessage<Error>(HasSubstr("Is a directory")));
  EXPECT_THAT([] { write_report("/dev/full", history(100, 2, 4, 1)); },
              ThrowsMessage<Error>(HasSubstr("/dev/full: No space left on device")));
}

}  // namespace
}  // namespace phalanx
