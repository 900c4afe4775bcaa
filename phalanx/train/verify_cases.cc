// Which cases cover a model's layouts.
#include <algorithm>

#include "phalanx/parallel/schedule/schedule.h"
#include "phalanx/train/pairwise.h"
#include "phalanx/train/verify.h"

namespace phalanx {
namespace {

// Those of a training step that the pipeline can run, with the fewest microbatches that DualPipe takes.
std::vector<std::string> schedules_of(const ModelConfig& model, int pp) {
  std::vector<std::string> names;
  for (const ScheduleEntry* entry : schedule_entries()) {
    const std::string name(entry->name);
    if (pp == 1 && name != "sequential" && name != "overlapped") continue;
    if (pp > 1 && (name == "overlapped" || (name == "dualpipe" && pp % 2 != 0))) continue;
    const Schedule s = make_schedule(name, {.ranks = pp, .microbatches = 2 * pp});
    if (s.stages() <= model.layers) names.push_back(name);
  }
  return names;
}

void add_each_zero(VerifyCase c, std::vector<VerifyCase>& cases) {
  for (c.zero = Zero::none; c.zero <= Zero::weights;
       c.zero = static_cast<Zero>(static_cast<int>(c.zero) + 1)) {
    cases.push_back(c);
    if (c.zero == Zero::none || c.layout.dp * c.layout.cp % 4 != 0) continue;
    cases.push_back(c);
    cases.back().shard = 2;  // two copies of what is shared out, or more
  }
}

std::vector<StreamConfig> tp_choices(const Layout& layout) {
  if (layout.tp == 1) return {StreamConfig()};
  return {StreamConfig(), {.sequence = true}, {.overlap = true}, {.sequence = true, .overlap = true}};
}

// What is to meet in pairs: the axes that cut something, and how.
Settings settings_of(const VerifyCase& c) {
  Settings s = {c.layout.text(),
                {"schedule " + c.schedule, format("recompute {}", recompute_name(c.recompute)),
                 format("zero {} shard {}", static_cast<int>(c.zero), c.shard)}};
  const Layout& l = c.layout;
  if (l.cp > 1) s.values.push_back(format("ulysses {} of {}", c.ulysses, l.cp));
  s.values.push_back(format("slices {}", c.slices));
  if (l.tp > 1) {
    s.values.push_back(c.sequence ? "sequence" : "alike");
    s.values.push_back(c.tp_overlap ? "overlap" : "no overlap");
  }
  const std::pair<const char*, int> axes[] = {{"pp", l.pp}, {"dp", l.dp}, {"cp", l.cp},
                                              {"tp", l.tp}, {"ep", l.ep}, {"etp", l.etp}};
  for (const auto& [name, size] : axes) {
    if (size > 1) s.values.push_back(format("{}={}", name, size));
  }
  return s;
}

}  // namespace

std::vector<VerifyCase> verify_cases(const ModelConfig& model, const std::vector<Layout>& layouts,
                                     Coverage coverage) {
  std::vector<VerifyCase> all;
  for (const Layout& layout : layouts) {
    for (const std::string& schedule : schedules_of(model, layout.pp)) {
      for (const int ulysses : ulysses_choices(model, layout)) {
        for (const auto& [sequence, overlap] : tp_choices(layout)) {
          for (const Recompute recompute :
               {Recompute::none, Recompute::attention, Recompute::mlp, Recompute::full}) {
            for (const int slices : {1, 2}) {
              if (model.context % slices != 0) continue;
              add_each_zero({layout, schedule, sequence, Zero::none, 0, ulysses, recompute, slices, overlap},
                            all);
            }
          }
        }
      }
    }
  }
  if (coverage == Coverage::exhaustive) return all;
  std::vector<Settings> settings;
  for (const VerifyCase& c : all) settings.push_back(settings_of(c));
  std::vector<VerifyCase> few;
  for (const size_t i : cover_pairs(settings)) few.push_back(all[i]);
  return few;
}

}  // namespace phalanx
