#include "phalanx/train/svg.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "phalanx/base/text.h"
#include "phalanx/model/utf8.h"

namespace phalanx {
namespace {

// Where a chart's data lies in its view box.
struct Frame {
  double left, top, right, bottom;
  PlotRange x, y;

  double at_x(double v) const { return left + (v - x.low) / (x.high - x.low) * (right - left); }
  // Values beyond the axis are drawn on its end.
  double at_y(double v) const {
    return bottom - std::clamp((v - y.low) / (y.high - y.low), 0.0, 1.0) * (bottom - top);
  }
};

// Values that the chart cannot show at their place.
struct Missing {
  int64_t beyond = 0;
  PlotPoint furthest;
  int64_t gaps = 0;
  double first_gap = 0;
  std::set<int> above, below, gap_places;  // where, in units of 4 of the view box
};

Frame frame_of(const LineChart& chart) {
  Frame f{58, 10, chart.width - chart.label_width, chart.height - 32, {}, {}};
  std::vector<double> values;
  double first = INFINITY;
  double last = -INFINITY;
  for (const ChartLine& line : chart.lines) {
    for (const PlotPoint& p : line.points) {
      first = std::min(first, p.x);
      last = std::max(last, p.x);
      if (line.style != LineStyle::smooth) values.push_back(p.y);
    }
  }
  if (first > last) first = last = 0;
  f.x = {first, std::max(last, first + std::max(1.0, 1e-6 * std::abs(first)))};
  f.y = with_room(robust_range(values), chart.from_zero);
  return f;
}

std::string grid(const Frame& f) {
  std::string out;
  const auto columns = static_cast<int>((f.right - f.left) / 70);
  const Ticks across = ticks_of(f.x, columns, 1);
  const Ticks up = ticks_of(f.y, static_cast<int>((f.bottom - f.top) / 36));
  for (const double t : up.at) {
    const double y = f.at_y(t);
    out += format(
        "<path class=\"grid\" d=\"M{:.1f} {:.1f}H{:.1f}\"/>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n",
        f.left, y, f.right, f.left - 8, y + 4.5, tick_text(up, t));
  }
  for (const double t : across.at) {
    const double x = f.at_x(t);
    out += format(
        "<path class=\"axis\" d=\"M{:.1f} {:.1f}v5\"/>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n",
        x, f.bottom, x, f.bottom + 20, tick_text(across, t));
  }
  return out + format(
                   "<path class=\"axis\" d=\"M{:.1f} {:.1f}H{:.1f}\"/>"
                   "<text x=\"{:.1f}\" y=\"{:.1f}\">step</text>\n",
                   f.left, f.bottom, f.right, f.right + 34, f.bottom + 20);
}

// A point alone between gaps becomes a line of no length, which round ends make a dot.
std::string path_data(const Frame& f, std::span<const PlotPoint> points, bool joined) {
  std::string d;
  bool down = false;
  for (size_t i = 0; i < points.size(); ++i) {
    if (!std::isfinite(points[i].y)) {
      down = false;
      continue;
    }
    d += format("{}{:.1f} {:.1f}", down ? " " : "M", f.at_x(points[i].x), f.at_y(points[i].y));
    const bool alone = !down && (i + 1 == points.size() || !std::isfinite(points[i + 1].y));
    if (alone || !joined) d += "h0";
    down = joined;
  }
  return d;
}

std::string paths(const Frame& f, const LineChart& chart) {
  static constexpr std::string_view kClass[] = {"plain", "raw", "smooth", "dots"};
  constexpr size_t kMostDots = 80;
  std::string out;
  for (const ChartLine& line : chart.lines) {
    const auto points = thinned(line.points, static_cast<size_t>(0.6 * (f.right - f.left)));
    const std::string d = path_data(f, points, true);
    if (d.empty()) continue;
    out += format("<path class=\"line s{} {}\" data-name=\"{}\" d=\"{}\"/>\n", line.colour,
                  kClass[static_cast<size_t>(line.style)], xml_text(line.name), d);
    if (points.size() == 1 || (line.style == LineStyle::dots && points.size() <= kMostDots)) {
      out += format("<path class=\"s{} point\" d=\"{}\"/>\n", line.colour, path_data(f, points, false));
    }
  }
  return out;
}

Missing missing_of(const Frame& f, const LineChart& chart) {
  Missing m;
  for (const ChartLine& line : chart.lines) {
    if (line.style == LineStyle::smooth) continue;
    for (const PlotPoint& p : line.points) {
      const int place = static_cast<int>(f.at_x(p.x) / 4);
      if (!std::isfinite(p.y)) {
        if (m.gaps++ == 0) m.first_gap = p.x;
        m.gap_places.insert(place);
      } else if (p.y > f.y.high || p.y < f.y.low) {
        (p.y > f.y.high ? m.above : m.below).insert(place);
        if (m.beyond++ == 0 || std::abs(p.y) > std::abs(m.furthest.y)) m.furthest = p;
      }
    }
  }
  return m;
}

std::string markers(const Frame& f, const Missing& m) {
  std::string above;
  std::string below;
  std::string gaps;
  for (const int x : m.above) above += format("M{} {:.1f}l5 9h-10z", x * 4 + 2, f.top - 5);
  for (const int x : m.below) below += format("M{} {:.1f}l5 -9h-10z", x * 4 + 2, f.bottom - 1);
  for (const int x : m.gap_places) gaps += format("M{} {:.1f}l6 6m0 -6l-6 6", x * 4 - 1, f.bottom - 10);
  std::string out;
  if (!above.empty() || !below.empty()) out += format("<path class=\"beyond\" d=\"{}{}\"/>\n", above, below);
  if (!gaps.empty()) out += format("<path class=\"gap\" d=\"{}\"/>\n", gaps);
  return out;
}

std::string note_of(const Missing& m) {
  const auto count = [](int64_t n, std::string_view one, std::string_view many) {
    return format("{} {}", number_text(static_cast<double>(n), 1), n == 1 ? one : many);
  };
  std::string note;
  if (m.beyond > 0) {
    note += format("{} {} beyond the axis, the furthest {} at step {}. ", m.above.empty() ? "▼" : "▲",
                   count(m.beyond, "value lies", "values lie"), number_text(m.furthest.y, 4),
                   number_text(m.furthest.x, 1));
  }
  if (m.gaps > 0) {
    note += format("× {} not finite, the first at step {}.", count(m.gaps, "value is", "values are"),
                   number_text(m.first_gap, 1));
  }
  return note;
}

// The last values beside the line's ends, pushed apart where they would overlap.
std::string end_labels(const Frame& f, const LineChart& chart) {
  struct Label {
    const ChartLine* line;
    double y;
  };
  constexpr double kApart = 18;
  std::vector<Label> labels;
  for (const ChartLine& line : chart.lines) {
    if (line.value.empty()) continue;
    const auto last =
        std::find_if(line.points.rbegin(), line.points.rend(), [](auto& p) { return std::isfinite(p.y); });
    labels.push_back({&line, last == line.points.rend() ? f.bottom : f.at_y(last->y)});
  }
  std::ranges::stable_sort(labels, {}, &Label::y);
  for (size_t i = 0; i < labels.size(); ++i) {
    labels[i].y = std::max(labels[i].y, i == 0 ? f.top + 2 : labels[i - 1].y + kApart);
  }
  for (size_t i = labels.size(); i-- > 0;) {
    labels[i].y = std::min(labels[i].y, i + 1 == labels.size() ? f.bottom - 4 : labels[i + 1].y - kApart);
  }
  std::string out;
  for (const Label& label : labels) {
    out += format(
        "<path class=\"s{} key\" d=\"M{:.1f} {:.1f}h8\"/>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\"><tspan class=\"value\">{}</tspan> {}</text>\n",
        label.line->colour, f.right + 9, label.y, f.right + 22, label.y + 4.5, xml_text(label.line->value),
        xml_text(label.line->name));
  }
  return out;
}

}  // namespace

std::string xml_text(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const Utf8Character c = utf8_at(text, at);
    const bool refused = c.length == 0 ||
                         (c.code < 0x20 && c.code != '\n' && c.code != '\t' && c.code != '\r') ||
                         (c.code >= 0x7f && c.code < 0xa0) || (c.code & 0xfffe) == 0xfffe;
    switch (c.code) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += refused ? std::string_view("\ufffd") : text.substr(at, c.length);
    }
    at += std::max<size_t>(1, c.length);
  }
  return out;
}

std::string detail::svg_figure(const SvgFigure& figure) {
  const std::string title = xml_text(figure.title);
  const std::string unit = xml_text(figure.unit);
  std::string out = format("<figure><figcaption>{} <span>{}</span></figcaption>\n", title, unit);
  out += format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{} ({}). {}\"{}>\n", figure.width,
                figure.height, title, unit, xml_text(figure.spoken), figure.attributes);
  out += figure.body + "</svg>\n";
  if (!figure.note.empty()) out += format("<p class=\"note\">{}</p>\n", xml_text(figure.note));
  return out + "</figure>\n";
}

std::string line_chart(const LineChart& chart) {
  const Frame f = frame_of(chart);
  const Missing missing = missing_of(f, chart);
  std::string spoken;
  for (const ChartLine& line : chart.lines) {
    if (!line.value.empty()) spoken += format("Last {}: {}. ", line.name, line.value);
  }
  return detail::svg_figure(
      {.title = chart.title,
       .unit = chart.unit,
       .width = chart.width,
       .height = chart.height,
       .body = grid(f) + paths(f, chart) + markers(f, missing) + end_labels(f, chart),
       .spoken = spoken,
       .note = note_of(missing),
       .attributes = format(" data-frame=\"{} {} {} {} {:.9g} {:.9g} {:.9g} {:.9g}\"", f.left, f.top, f.right,
                            f.bottom, f.x.low, f.x.high, f.y.low, f.y.high)});
}

}  // namespace phalanx
