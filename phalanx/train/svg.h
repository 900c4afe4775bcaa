// Charts as inline SVG for a page that styles them (report_style.h): colours are classes, so that the page
// can be light or dark. Each is a whole <figure>, and well-formed XML.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "phalanx/train/plot.h"

namespace phalanx {

/// Text that may stand between tags and in quoted attributes of HTML and XML. Bytes that are no UTF-8 and
/// characters that XML refuses become U+FFFD.
std::string xml_text(std::string_view text);

enum class LineStyle : uint8_t {
  plain,
  raw,     ///< thin and faint, under its `smooth` line
  smooth,  ///< derived from another line: not counted among what is missing or beyond the axis
  dots,    ///< joined by a line
};

struct ChartLine {
  std::string name;   ///< beside the last value, may be empty
  std::string value;  ///< the last value as text; empty: no label at the line's end
  LineStyle style = LineStyle::plain;
  int colour = 0;  ///< 0..7, see report_style.h
  std::vector<PlotPoint> points;
};

/// Lines over steps. The y axis leaves out rare values far from all others (robust_range); what is beyond it
/// or not finite is marked at the axis and told below the chart.
struct LineChart {
  std::string title;
  std::string unit;  ///< and what else must be said of the lines
  std::vector<ChartLine> lines;
  double width = 900;  ///< of the view box, as in all charts here; the page scales it
  double height = 340;
  double label_width = 176;  ///< room at the right for last values
  bool from_zero = false;
};
std::string line_chart(const LineChart& chart);

/// Loads relative to even: 1 is even, 0 unused, all from 2 up look alike; NaN is unknown.
struct HeatMap {
  std::string title;
  std::string unit;
  std::string row_name;
  std::string column_name;
  std::vector<std::vector<double>> rows;
  std::vector<std::string> row_notes;  ///< one a row, at its end
  std::string note_name;               ///< what they are
};
/// With more than some ten thousand cells, or more than 256 columns, one cell shows the largest of several.
std::string heat_map(const HeatMap& map);

struct BarPart {
  std::string name;
  double value = 0;  ///< ≥ 0
  int colour = 0;
};

/// Parts of a whole, as one horizontal bar; `within` is a share of them all, drawn below at the same scale.
struct StackedBar {
  std::string title;
  std::string unit;
  std::vector<BarPart> parts;
  BarPart within;
};
std::string stacked_bar(const StackedBar& bar);

namespace detail {
/// <figure> with its caption and an SVG of `width` × `height` units.
struct SvgFigure {
  std::string title;
  std::string unit;
  double width = 0;
  double height = 0;
  std::string body;        ///< the SVG's elements
  std::string spoken;      ///< what the picture says, for those who hear it
  std::string note;        ///< a line below, may be empty
  std::string attributes;  ///< more of the SVG's, beginning with a space
};
std::string svg_figure(const SvgFigure& figure);
}  // namespace detail

}  // namespace phalanx
