// Charts of filled areas: the heat map and the stacked bar.
#include <algorithm>
#include <cmath>
#include <map>

#include "phalanx/base/text.h"
#include "phalanx/train/svg.h"

namespace phalanx {
namespace {

constexpr int kLevels = 8;  // of colour, on each side of even

// 0 is even, kLevels twice that or more, -kLevels none.
int level_of(double load) { return static_cast<int>(std::lround(std::clamp(load - 1, -1.0, 1.0) * kLevels)); }

std::string level_attributes(int level) {
  return format("class=\"{}\" stroke-opacity=\"{}\"", level > 0 ? "above" : "below",
                std::abs(level) / static_cast<double>(kLevels));
}

// Of a number on that colour; the page decides which of its inks is legible.
std::string_view ink_of(int level) {
  const int strength = std::abs(level);
  return strength > 6 ? "strong" : strength > 4 ? "middle" : "weak";
}

// Where cells lie in the view box.
struct Grid {
  size_t group = 1;  // columns in one cell
  size_t columns = 0;
  double left = 76, top = 40;
  double width = 0, height = 0;  // of a cell, with the gap
  double gap = 0;
  bool numbers = false;

  double x(size_t column) const { return left + static_cast<double>(column) * width; }
  double y(size_t row) const { return top + static_cast<double>(row) * height; }
};

Grid grid_of(const HeatMap& map) {
  constexpr size_t kMostCells = 10000;
  constexpr size_t kMostColumns = 256;
  Grid g;
  for (const auto& row : map.rows) g.columns = std::max(g.columns, row.size());
  const size_t most = std::clamp<size_t>(kMostCells / std::max<size_t>(1, map.rows.size()), 1, kMostColumns);
  g.group = std::max<size_t>(1, (g.columns + most - 1) / most);
  g.columns = std::max<size_t>(1, (g.columns + g.group - 1) / g.group);
  g.width = std::min(80.0, 714.0 / static_cast<double>(std::max<size_t>(1, g.columns)));
  g.gap = g.width >= 8 ? 2 : 0;
  g.numbers = g.width >= 34;
  g.height = (g.numbers ? 26 : map.rows.size() > 24 ? 14 : 18) + g.gap;
  return g;
}

std::vector<double> cells_of(const std::vector<double>& row, size_t group) {
  std::vector<double> out;
  for (size_t i = 0; i < row.size(); i += group) {
    double largest = row[i];
    for (size_t k = i; k < std::min(row.size(), i + group); ++k) largest = std::fmax(largest, row[k]);
    out.push_back(largest);
  }
  return out;
}

// What a cell says: "1.03", "12.5", "–".
std::string load_text(double load) {
  if (!std::isfinite(load)) return "–";
  return format(load < 9.995 ? "{:.2f}" : "{:.1f}", load);
}

// The cells of one row as strokes, those of one level one path: thousands of them stay small. Across, they
// are in units of a cell.
std::string strokes(const Grid& g, const std::vector<double>& cells, double y) {
  std::map<int, std::string> paths;
  const std::string dash = format("h{:.3g}", (g.width - g.gap) / g.width);
  for (size_t c = 0; c < cells.size(); ++c) {
    const int level = std::isfinite(cells[c]) ? level_of(cells[c]) : 0;
    const std::string cell = format("M{} 0{}", c, dash);
    if (level != 0) paths[level] += cell;
    if (g.gap > 0) paths[0] += cell;
  }
  if (g.gap == 0) paths[0] = format("M0 0h{}", cells.size());
  std::string out =
      format("<g transform=\"translate({:.1f} {:.1f}) scale({:.4f} 1)\" stroke-width=\"{:.1f}\">", g.left, y,
             g.width, g.height - g.gap);
  out += format("<path class=\"even\" d=\"{}\"/>", paths[0]);
  for (const auto& [level, d] : paths) {
    if (level != 0) out += format("<path {} d=\"{}\"/>", level_attributes(level), d);
  }
  return out + "</g>";
}

std::string row_body(const Grid& g, const std::vector<double>& cells, size_t row) {
  std::string numbers;
  std::string loads;
  const double y = g.y(row) + (g.height - g.gap) / 2;
  for (size_t c = 0; c < cells.size(); ++c) {
    loads += (c == 0 ? "" : " ") + load_text(cells[c]);
    if (!g.numbers) continue;
    numbers += format("<text class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>",
                      ink_of(std::isfinite(cells[c]) ? level_of(cells[c]) : 0),
                      g.x(c) + (g.width - g.gap) / 2, y + 4.5, load_text(cells[c]));
  }
  return format("<g data-loads=\"{}\">{}{}</g>\n", loads, strokes(g, cells, y), numbers);
}

std::string row_labels(const Grid& g, const HeatMap& map) {
  std::string out;
  for (size_t r = 0; r < map.rows.size(); ++r) {
    const double y = g.y(r) + (g.height - g.gap) / 2 + 4.5;
    out += format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>", g.left - 8, y, r);
    if (r < map.row_notes.size()) {
      out += format("<text class=\"value\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", g.x(g.columns) + 10, y,
                    xml_text(map.row_notes[r]));
    }
  }
  return out;
}

std::string headers(const Grid& g, const HeatMap& map) {
  std::string out = format("<text x=\"0\" y=\"{:.1f}\">{}</text><text x=\"{:.1f}\" y=\"14\">{}</text>",
                           g.top - 8, xml_text(map.row_name), g.left, xml_text(map.column_name));
  out += format("<text x=\"{:.1f}\" y=\"14\">{}</text>\n", g.x(g.columns) + 10, xml_text(map.note_name));
  const PlotRange shown = {0, static_cast<double>(g.columns * g.group - 1)};
  const int about = std::min(static_cast<int>(g.columns), static_cast<int>(g.x(g.columns) - g.left) / 34);
  for (const double t : ticks_of(shown, std::max(1, about), 1).at) {
    const double column = std::floor(t / static_cast<double>(g.group));
    out +=
        format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>",
               g.x(static_cast<size_t>(column)) + (g.width - g.gap) / 2, g.top - 8, static_cast<int64_t>(t));
  }
  return out + "\n";
}

std::string legend(const Grid& g, double top) {
  constexpr double kWidth = 15;
  std::string out;
  for (int level = -kLevels; level <= kLevels; ++level) {
    const double x = g.left + (level + kLevels) * kWidth;
    const std::string d = format("M{:.1f} {:.1f}h{}", x, top + 6, kWidth);
    out += format("<path class=\"even\" stroke-width=\"12\" d=\"{}\"/>", d);
    if (level != 0) out += format("<path {} stroke-width=\"12\" d=\"{}\"/>", level_attributes(level), d);
  }
  for (const auto& [level, text] : {std::pair(-kLevels, "0"), {0, "1, even"}, {kLevels, "2 or more"}}) {
    out += format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>",
                  g.left + (level + kLevels + 0.5) * kWidth, top + 28, text);
  }
  return out + "\n";
}

std::string percent(double value, double whole) { return format("{:.1f} %", 100 * value / whole); }

}  // namespace

std::string heat_map(const HeatMap& map) {
  const Grid g = grid_of(map);
  std::string body = headers(g, map) + row_labels(g, map);
  std::string spoken;
  for (size_t r = 0; r < map.rows.size(); ++r) {
    body += row_body(g, cells_of(map.rows[r], g.group), r);
    if (r < map.row_notes.size() && r < 32) {
      spoken += format("{} {}, {}: {}. ", map.row_name, r, map.note_name, map.row_notes[r]);
    }
  }
  const double end = g.y(map.rows.size()) + 14;
  body += legend(g, end);
  return detail::svg_figure(
      {.title = map.title,
       .unit = map.unit,
       .width = 900,
       .height = end + 36,
       .body = body,
       .spoken = spoken,
       .note = g.group == 1 ? "" : format("Each cell shows the largest of {} neighbours.", g.group),
       .attributes =
           format(" class=\"heat\" data-cells=\"{} {} {:.6g} {} {}\" data-names=\"{}, {}\"", g.left, g.top,
                  g.width, g.height, g.group, xml_text(map.row_name), xml_text(map.column_name))});
}

std::string stacked_bar(const StackedBar& bar) {
  constexpr double kWidth = 900;
  double whole = 0;
  for (const BarPart& part : bar.parts) whole += part.value;
  std::string body;
  std::string spoken;
  double x = 0;
  for (const BarPart& part : bar.parts) {
    if (!(part.value > 0)) continue;
    const double width = kWidth * part.value / whole;
    const std::string share = percent(part.value, whole);
    body += format("<rect class=\"f{}\" x=\"{:.1f}\" y=\"2\" width=\"{:.1f}\" height=\"32\">", part.colour, x,
                   std::max(0.5, width - 2));
    body += format("<title>{}: {}</title></rect>\n", xml_text(part.name), share);
    if (width >= 52) {
      body += format("<text class=\"on{}\" x=\"{:.1f}\" y=\"22.5\" text-anchor=\"middle\">{}</text>\n",
                     part.colour, x + width / 2 - 1, share);
    }
    spoken += format("{} {}. ", part.name, share);
    x += width;
  }
  if (whole > 0 && bar.within.value > 0) {
    const std::string text =
        format("{}: {} of all the time", bar.within.name, percent(bar.within.value, whole));
    body += format("<rect class=\"within\" x=\"0\" y=\"40\" width=\"{:.1f}\" height=\"7\"/>",
                   kWidth * std::min(1.0, bar.within.value / whole));
    body += format("<text x=\"0\" y=\"64\">{}</text>\n", xml_text(text));
    spoken += text + ".";
  }
  return detail::svg_figure({.title = bar.title,
                             .unit = bar.unit,
                             .width = kWidth,
                             .height = bar.within.value > 0 ? 70.0 : 36.0,
                             .body = body,
                             .spoken = spoken});
}

}  // namespace phalanx
