#include "phalanx/train/choice_replay.h"

#include <algorithm>

#include "phalanx/ops/route_choice.h"

namespace phalanx {

void CloseChoices::record(const Routed& r) {
  const std::vector<double> margins = choice_margins(r.routing, r.config, r.bias_E);
  const auto numbers = r.numbers_T.span<int64_t>();
  for (size_t t = 0; t < margins.size(); ++t) {
    if (margins[t] >= margin_) continue;
    const auto at = static_cast<int64_t>(t);
    const auto chosen = r.routing.topk_idx_TK.slice(at, at + 1).span<int64_t>();
    chosen_[{r.router, r.step, numbers[t]}] = {chosen.begin(), chosen.end()};
  }
}

int64_t CloseChoices::replay(const Routed& r) const {
  if (chosen_.empty()) return 0;
  const auto numbers = r.numbers_T.span<int64_t>();
  int64_t tokens = 0;
  for (size_t t = 0; t < numbers.size(); ++t) {
    const auto found = chosen_.find({r.router, r.step, numbers[t]});
    const auto at = static_cast<int64_t>(t);
    if (found == chosen_.end() ||
        std::ranges::equal(found->second, r.routing.topk_idx_TK.slice(at, at + 1).span<int64_t>())) {
      continue;
    }
    choose_instead(r.routing, at, found->second, r.config);
    ++tokens;
  }
  return tokens;
}

}  // namespace phalanx
