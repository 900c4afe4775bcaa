// docs/config.md, held equal to the code: every section, and of every key its default, type and meaning.
#include <gtest/gtest.h>

#include <filesystem>
#include <sstream>

#include "phalanx/base/file.h"
#include "phalanx/base/text.h"
#include "phalanx/train/train_config.h"
#include "tests/paths.h"

namespace phalanx {
namespace {

using Lines = std::vector<std::string>;

Lines lines_of(const std::string& text) {
  std::istringstream in(text);
  Lines lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// The rows that the page must have, in the order of the file that --print-config writes: "## [model]", then
// "| `layers` | 4 | an integer of at least 1 | blocks of attention and MLP |".
Lines rows_of_code() {
  TrainConfig defaults;
  const ConfigTable table = train_table(defaults);
  Lines rows;
  std::string section;
  for (const std::string& line : lines_of(table.toml())) {
    if (line.starts_with("[")) {
      section = line.substr(1, line.size() - 2);
      rows.push_back(format("## [{}]", section));
    } else if (!line.empty()) {
      const ConfigField& f = table.field(section + "." + line.substr(0, line.find(' ')));
      rows.push_back(format("| `{}` | `{}` | {} | {} |", f.key(), f.text(), f.expected(), f.doc()));
    }
  }
  return rows;
}

Lines rows_of_page() {
  const auto page = std::filesystem::path(testing::kSourceDir) / "docs" / "config.md";
  Lines rows;
  for (const std::string& line : lines_of(read_text(page, uint64_t{1} << 20))) {
    if (line.starts_with("## [") || line.starts_with("| `")) rows.push_back(line);
  }
  return rows;
}

TEST(ConfigPage, SaysWhatTheCodeSays) {
  const Lines code = rows_of_code();
  const Lines page = rows_of_page();
  ASSERT_GT(code.size(), 40u);
  for (size_t i = 0; i < std::min(code.size(), page.size()); ++i) {
    ASSERT_EQ(page[i], code[i]) << "docs/config.md, left, must read as the code, right, does";
  }
  EXPECT_EQ(page.size(), code.size()) << "rows of docs/config.md and keys of the code";
}

}  // namespace
}  // namespace phalanx
