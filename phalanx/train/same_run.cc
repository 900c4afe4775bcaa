#include "phalanx/train/same_run.h"

#include <string>

#include "phalanx/base/error.h"
#include "phalanx/train/agree.h"
#include "phalanx/train/checksum.h"

namespace phalanx {
namespace {

// `of_rank_0`: its configuration as TOML.
void compare(TrainConfig mine, const std::string& of_rank_0) {
  if (to_toml(mine) == of_rank_0) return;
  TrainConfig theirs = parse_train_config(of_rank_0, "rank 0's configuration", {});
  if (to_toml(theirs) != of_rank_0) {
    throw Error("rank 0 has other configuration keys: start every rank with the same phalanx");
  }
  const ConfigTable of_theirs = train_table(theirs);
  const ConfigTable table = train_table(mine);
  for (const ConfigSection& section : table.sections()) {
    for (const ConfigField& field : section.fields()) {
      const std::string there = of_theirs.field(field.name()).text();
      if (field.text() == there) continue;
      throw Error("{} is {} here and {} on rank 0; start every rank with the same configuration",
                  field.name(), field.text(), there);
    }
  }
}

}  // namespace

void check_same_run(Group& world, const TrainConfig& config, const Dataset& data) {
  if (world.size() == 1) return;
  const std::string of_rank_0 = broadcast_text(world, to_toml(config), 0);
  const std::string text = checksum_text(data.checksum());
  const std::string text_of_rank_0 = broadcast_text(world, text, 0);
  all_or_none(world, [&] {
    compare(config, of_rank_0);
    if (text != text_of_rank_0) {
      throw Error("data.text ({}) has other tokens here than on rank 0; give every rank the same text",
                  config.data.text);
    }
  });
}

}  // namespace phalanx
