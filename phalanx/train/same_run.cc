#include "phalanx/train/same_run.h"

#include <sstream>
#include <string>
#include <vector>

#include "phalanx/base/error.h"
#include "phalanx/train/agree.h"
#include "phalanx/train/checksum.h"

namespace phalanx {
namespace {

struct Setting {
  std::string key;  // "model.width"
  std::string value;
};

// Of what to_toml writes, in its order.
std::vector<Setting> settings_of(const std::string& toml) {
  std::vector<Setting> settings;
  std::string section;
  std::istringstream lines(toml);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("[")) {
      section = line.substr(1, line.find(']') - 1);
    } else if (const size_t equals = line.find(" = "); equals != std::string::npos) {
      settings.push_back({section + "." + line.substr(0, equals), line.substr(equals + 3)});
    }
  }
  return settings;
}

void compare(const std::string& mine, const std::string& of_rank_0) {
  if (mine == of_rank_0) return;
  const std::vector<Setting> here = settings_of(mine);
  const std::vector<Setting> there = settings_of(of_rank_0);
  if (here.size() != there.size()) {
    throw Error("{} configuration keys here and {} on rank 0: start every rank with the same phalanx",
                here.size(), there.size());
  }
  for (size_t i = 0; i < here.size(); ++i) {
    if (here[i].value == there[i].value) continue;
    throw Error("{} is {} here and {} on rank 0; start every rank with the same configuration", here[i].key,
                here[i].value, there[i].value);
  }
}

}  // namespace

void check_same_run(Group& world, const TrainConfig& config, const Dataset& data) {
  if (world.size() == 1) return;
  const std::string mine = to_toml(config);
  const std::string of_rank_0 = broadcast_text(world, mine, 0);
  const std::string text = checksum_text(data.checksum());
  const std::string text_of_rank_0 = broadcast_text(world, text, 0);
  all_or_none(world, [&] {
    compare(mine, of_rank_0);
    if (text != text_of_rank_0) {
      throw Error("data.text ({}) has other tokens here than on rank 0; give every rank the same text",
                  config.data.text);
    }
  });
}

}  // namespace phalanx
