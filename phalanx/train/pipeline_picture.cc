#include "phalanx/train/pipeline_picture.h"

#include <algorithm>
#include <array>

#include "phalanx/base/text.h"
#include "phalanx/train/svg.h"

namespace phalanx {
namespace {

// Of the picture, in its units.
constexpr double kLeft = 64;
constexpr double kRight = 892;
constexpr double kTop = 20;
constexpr double kRow = 30;
constexpr double kBar = 26;
constexpr double kLetter = 8;         // of a label
constexpr size_t kMostTitles = 1000;  // steps; of a picture with more the blocks alone are drawn

struct Kind {
  StepOp op;
  std::string_view name;
  int colour;
};
constexpr std::array<Kind, 4> kKinds = {{{StepOp::F, "forward", 0},
                                         {StepOp::B, "backward", 2},
                                         {StepOp::I, "backward, weight gradients put off", 5},
                                         {StepOp::W, "weight gradients", 4}}};

int colour_of(StepOp op) { return std::ranges::find(kKinds, op, &Kind::op)->colour; }

struct Box {
  double x = 0, y = 0, width = 0, height = 0;
};

std::string rect(std::string_view attributes, const Box& box) {
  return format(R"(<rect {} x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"/>)", attributes, box.x,
                box.y, box.width, box.height);
}

class Picture {
 public:
  explicit Picture(const PipelineRecord& record) : record_(record) {
    begin_ = record.ranks.front().front().begin_ns;
    end_ = begin_;
    for (const auto& steps : record.ranks) {
      begin_ = std::min(begin_, steps.front().begin_ns);
      end_ = std::max(end_, steps.back().end_ns);
      steps_ += steps.size();
    }
  }

  double height() const { return kTop + kRow * static_cast<double>(record_.ranks.size()) + 44; }

  std::string body() const {
    std::string out;
    for (size_t r = 0; r < record_.ranks.size(); ++r) out += row(r);
    return out + axis() + legend();
  }

 private:
  double x(int64_t ns) const {
    return kLeft + (kRight - kLeft) * static_cast<double>(ns - begin_) / static_cast<double>(end_ - begin_);
  }
  double ms(int64_t ns) const { return static_cast<double>(ns - begin_) * 1e-6; }
  static double y(size_t rank) { return kTop + kRow * static_cast<double>(rank); }

  std::string row(size_t rank) const {
    std::string out =
        format(R"(<g data-rank="{}"><text x="0" y="{:.1f}">rank {}</text>)", rank, y(rank) + 17.5, rank);
    int64_t free_since = begin_;
    for (const TimedStep& s : record_.ranks[rank]) {
      out += bubble(rank, free_since, s.begin_ns) + block(rank, s);
      free_since = s.end_ns;
    }
    return out + bubble(rank, free_since, end_) + "</g>\n";
  }

  std::string bubble(size_t rank, int64_t from, int64_t to) const {
    if (x(to) - x(from) < 0.05) return "";
    return rect(R"(class="bubble")", {x(from), y(rank), x(to) - x(from), kBar});
  }

  std::string part(const Box& box, StepOp op, int chunk, int microbatch) const {
    const int colour = colour_of(op);
    const std::string label = format("{}", microbatch);
    std::string out = rect(format(R"(class="f{}{}")", colour, chunk == 0 ? "" : " more"), box);
    if (kLetter * static_cast<double>(label.size()) > box.width) return out;
    const char* size = box.height < kBar ? " font-size=\"10\"" : "";
    return out + format(R"(<text class="on{}" text-anchor="middle"{} x="{:.2f}" y="{:.2f}">{}</text>)",
                        colour, size, box.x + box.width / 2,
                        box.y + box.height / 2 + (box.height < kBar ? 3.5 : 4.5), label);
  }

  std::string block(size_t rank, const TimedStep& s) const {
    const Box box = {x(s.begin_ns), y(rank), std::max(0.2, x(s.end_ns) - x(s.begin_ns) - 0.4), kBar};
    std::string out = "<g>";
    if (steps_ <= kMostTitles) {
      out += format("<title>{}: {:.3f} to {:.3f} ms</title>",
                    xml_text(step_text(s.step, record_.schedule.chunks_per_rank > 1)), ms(s.begin_ns),
                    ms(s.end_ns));
    }
    if (s.step.op != StepOp::FB) return out + part(box, s.step.op, s.step.chunk, s.step.microbatch) + "</g>";
    const Box upper = {box.x, box.y, box.width, kBar / 2};
    const Box lower = {box.x, box.y + kBar / 2, box.width, kBar / 2};
    return out + part(upper, StepOp::F, s.step.chunk, s.step.microbatch) +
           part(lower, StepOp::B, s.step.b_chunk, s.step.b_microbatch) + "</g>";
  }

  std::string axis() const {
    std::string out;
    const Ticks ticks = ticks_of({0, ms(end_)}, 8);
    for (const double t : ticks.at) {
      const double at = kLeft + (kRight - kLeft) * t / ms(end_);
      const char* unit = t < ticks.step / 2 ? " ms" : "";
      out += format(R"(<text x="{:.1f}" y="12" text-anchor="middle">{}{}</text>)", at,
                    tick_text(ticks, std::max(t, 0.0)), unit);
    }
    return out + "\n";
  }

  std::string legend() const {
    const double at = height() - 26;
    std::string out;
    double left = kLeft;
    const auto entry = [&](const std::string& attributes, std::string_view name) {
      out += rect(attributes, {left, at, 14, 14});
      out += format(R"(<text x="{:.1f}" y="{:.1f}">{}</text>)", left + 19, at + 11.5, name);
      left += 44 + 6.6 * static_cast<double>(name.size());
    };
    for (const Kind& kind : kKinds) {
      if (has(kind.op)) entry(format(R"(class="f{}")", kind.colour), kind.name);
    }
    if (record_.schedule.chunks_per_rank > 1) entry(R"(class="f0 more")", "later chunks");
    entry(R"(class="bubble")", "bubble");
    return out + "\n";
  }

  bool has(StepOp op) const {
    const bool pairs = op == StepOp::F || op == StepOp::B;
    return std::ranges::any_of(record_.ranks, [&](const auto& steps) {
      return std::ranges::any_of(
          steps, [&](const TimedStep& s) { return s.step.op == op || (pairs && s.step.op == StepOp::FB); });
    });
  }

  const PipelineRecord& record_;
  int64_t begin_ = 0;
  int64_t end_ = 0;
  size_t steps_ = 0;
};

std::string table_row(std::string_view name, double idle, double busy) {
  return format("<tr><td>{}</td><td>{:.3f}</td><td>{:.1f}</td></tr>\n", name, 1e3 * idle,
                100 * idle / (idle + busy));
}

std::string table(const Bubble& b) {
  const double busy = b.makespan - b.measured;
  return "<table><thead><tr><th scope=\"col\">bubble of the worst rank</th><th scope=\"col\">ms</th><th "
         "scope=\"col\">% of its step</th></tr></thead><tbody>\n" +
         table_row("measured", b.measured, busy) +
         table_row("simulated: each step as measured, messages free", b.simulated, busy) +
         table_row("by formula, from mean times", b.formula, busy) + "</tbody></table>\n";
}

}  // namespace

std::string pipeline_section(const std::optional<PipelineRecord>& record) {
  if (!record) return "";
  const Bubble b = bubble_of(*record);
  const Picture picture(*record);
  const Schedule& s = record->schedule;
  const std::string spoken = format("Bubble measured {:.3f} ms, by formula {:.3f} ms of {:.3f} ms.",
                                    1e3 * b.measured, 1e3 * b.formula, 1e3 * b.makespan);
  std::string out =
      "<h2>Pipeline</h2>\n" +
      detail::svg_figure({.title = format("Step {}", record->step),
                          .unit = format("{}, {} microbatches; the median of the last steps, ranks of "
                                         "pp beside rank 0",
                                         s.name, s.microbatches),
                          .width = 900,
                          .height = picture.height(),
                          .body = picture.body(),
                          .spoken = spoken});
  out += table(b);
  return out + format(
                   "<p class=\"note\">A chunk's F, B and W take {:.3f}, {:.3f} and {:.3f} ms on average, an "
                   "overlapped pair {:.3f} ms.</p>\n",
                   1e3 * b.mean.F, 1e3 * b.mean.B, 1e3 * b.mean.W, 1e3 * b.mean.FB);
}

}  // namespace phalanx
