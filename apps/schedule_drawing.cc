#include "apps/schedule_drawing.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "phalanx/base/text.h"
#include "phalanx/train/svg.h"

namespace phalanx {
namespace {

// Of the picture, in its units.
constexpr double kLeft = 64;
constexpr double kTop = 52;
constexpr double kRow = 30;
constexpr double kBar = 26;
constexpr double kLetter = 6.2;  // of a step's label

constexpr double kMostColumns = 200'000;  // of the text

// Calls `visit(rank, step, span)` for every step.
template <class Visit>
void for_each_step(const Schedule& schedule, const Timeline& timeline, Visit visit) {
  for (size_t r = 0; r < schedule.steps.size(); ++r) {
    for (size_t i = 0; i < schedule.steps[r].size(); ++i) {
      visit(r, schedule.steps[r][i], timeline.spans[r][i]);
    }
  }
}

std::string label_of(const Schedule& schedule, const Step& step) {
  return step_text(step, schedule.chunks_per_rank > 1, schedule.slices);
}

// Letters for one unit of time, so that every label has room.
double letters_for_a_unit(const Schedule& schedule, const Timeline& timeline) {
  double most = 0;
  for_each_step(schedule, timeline, [&](size_t, const Step& step, const StepSpan& span) {
    const auto needed = static_cast<double>(label_of(schedule, step).size() + 1);
    most = std::max(most, needed / std::max(1e-9, span.end - span.start));
  });
  return std::ceil(most);
}

constexpr std::string_view kStyle =
    "<style>text { font: 11px system-ui, sans-serif; fill: #1b1f24 } .title { font-size: 15px; font-weight: "
    "600 } .line { stroke: #ffffff; stroke-width: 1 } .step text { text-anchor: middle } .half { font-size: "
    "9px }\n.F { fill: #56b4e9 } .B { fill: #2fb38a } .I { fill: #9bdcc4 } .W { fill: #e6a83a }\n.F.more { "
    "fill: #a3d6f4 } .B.more { fill: #86d3bb } .I.more { fill: #cdeee2 } .W.more { fill: #f3d49b }</style>\n";
constexpr std::string_view kHatch =
    "<defs><pattern id=\"idle\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform="
    "\"rotate(45)\"><rect width=\"6\" height=\"6\" fill=\"#eceef1\"/><rect width=\"2\" height=\"6\" "
    "fill=\"#c9ced6\"/></pattern></defs>\n";

struct Box {
  double x = 0, y = 0, width = 0, height = 0;
};

// Chunks after the first are paler.
std::string bar(std::string_view kind, int chunk, const Box& box) {
  return format("<rect class=\"{}{} line\" x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\"/>",
                kind, chunk == 0 ? "" : " more", box.x, box.y, box.width, box.height);
}

// In the middle of the box, if there is room.
std::string label_in(const Box& box, const std::string& label, std::string_view style) {
  if (kLetter * static_cast<double>(label.size()) > box.width) return "";
  return format("<text{} x=\"{:.2f}\" y=\"{:.2f}\">{}</text>", style, box.x + box.width / 2,
                box.y + box.height / 2 + 4, xml_text(label));
}

// A step of an overlapped pair is drawn in two halves, forward above backward.
std::string step_svg(const Step& step, const std::string& label, const StepSpan& span, const Box& box) {
  std::string out =
      format("<g class=\"step\"><title>{}: {:g} to {:g}</title>", xml_text(label), span.start, span.end);
  if (step.op == StepOp::FB) {
    const Box upper = {box.x, box.y, box.width, box.height / 2};
    const Box lower = {box.x, box.y + box.height / 2, box.width, box.height / 2};
    const size_t middle = label.find('&');
    out += bar("F", step.chunk, upper) + bar("B", step.b_chunk, lower);
    out += label_in(upper, label.substr(0, middle), " class=\"half\"");
    out += label_in(lower, label.substr(middle + 1), " class=\"half\"");
  } else {
    out += bar(op_name(step.op), step.chunk, box) + label_in(box, label, "");
  }
  return out + "</g>\n";
}

std::string legend(double y) {
  struct Entry {
    std::string_view kind, text;
  };
  constexpr std::array<Entry, 4> kEntries = {{{"F", "forward"},
                                              {"B", "backward"},
                                              {"I", "backward, weight gradients put off"},
                                              {"W", "weight gradients"}}};
  std::string out;
  double x = kLeft;
  for (const Entry& entry : kEntries) {
    out += bar(entry.kind, 0, {x, y, 14, 14});
    out += format("<text x=\"{:.2f}\" y=\"{:.2f}\">{}</text>", x + 19, y + 11, entry.text);
    x += 40 + 6 * static_cast<double>(entry.text.size());
  }
  return out + format(
                   "<rect fill=\"url(#idle)\" x=\"{:.2f}\" y=\"{:.2f}\" width=\"14\" height=\"14\"/>"
                   "<text x=\"{:.2f}\" y=\"{:.2f}\">idle</text>\n",
                   x, y, x + 19, y + 11);
}

}  // namespace

std::string timeline_text(const Schedule& schedule, const Timeline& timeline) {
  const double scale = letters_for_a_unit(schedule, timeline);
  if (scale * timeline.makespan > kMostColumns) {
    return "(the shortest step is too short beside the whole for a timeline in text; --svg draws it)\n";
  }
  const auto column = [scale](double time) { return static_cast<size_t>(std::lround(time * scale)); };
  std::vector<std::string> rows(schedule.steps.size(), std::string(column(timeline.makespan), '.'));
  for_each_step(schedule, timeline, [&](size_t r, const Step& step, const StepSpan& span) {
    const size_t begin = column(span.start);
    std::string label = label_of(schedule, step);
    label.resize(std::max(label.size(), column(span.end) - begin), ' ');
    rows[r].replace(begin, label.size(), label);
  });
  std::string out;
  for (size_t r = 0; r < rows.size(); ++r) out += format("rank {:<3}", r) + rows[r] + "\n";
  return out;
}

std::string timeline_svg(const Schedule& schedule, const Timeline& timeline) {
  const double scale = std::clamp(1400 / std::max(1e-9, timeline.makespan), 8.0, 40.0);
  const double right = kLeft + scale * timeline.makespan;
  const double bottom = kTop + kRow * schedule.ranks;
  const double width = std::max(right + 16, 720.0);
  std::string out = format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0f} {:.0f}\" width=\"{:.0f}\" "
      "height=\"{:.0f}\" role=\"img\">\n",
      width, bottom + 44, width, bottom + 44);
  const double worst = std::ranges::max(timeline.idle);
  const std::string title =
      format("{}: {} ranks, {} microbatches{}; makespan {:g}, idle at most {:g}", schedule.name,
             schedule.ranks, schedule.microbatches / schedule.slices,
             schedule.slices > 1 ? format(" of {} slices", schedule.slices) : "", timeline.makespan, worst);
  out += format("<title>{}</title>\n", xml_text(title));
  out += kStyle;
  out += kHatch;
  out += format("<rect width=\"{:.0f}\" height=\"{:.0f}\" fill=\"#ffffff\"/>\n", width, bottom + 44);
  out += format("<text class=\"title\" x=\"12\" y=\"28\">{}</text>\n", xml_text(title));
  for (int r = 0; r < schedule.ranks; ++r) {
    const double y = kTop + kRow * r;
    out += format("<text x=\"12\" y=\"{:.2f}\">rank {}</text>", y + 17, r);
    out += format(
        "<rect class=\"idle\" fill=\"url(#idle)\" x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" "
        "height=\"{:.2f}\"><title>rank {}: idle for {:g}</title></rect>\n",
        kLeft, y, right - kLeft, kBar, r, timeline.idle[static_cast<size_t>(r)]);
  }
  for_each_step(schedule, timeline, [&](size_t r, const Step& step, const StepSpan& span) {
    const Box box = {kLeft + scale * span.start, kTop + kRow * static_cast<double>(r),
                     scale * (span.end - span.start), kBar};
    out += step_svg(step, label_of(schedule, step), span, box);
  });
  return out + legend(bottom + 16) + "</svg>\n";
}

}  // namespace phalanx
