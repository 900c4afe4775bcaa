// How many elements of a model's parameters lie on a rank of a layout, from the configuration alone.
#pragma once

#include <vector>

#include "phalanx/model/stage.h"
#include "phalanx/parallel/parameter_store.h"

namespace phalanx {

struct Elements {
  int64_t all = 0;
  int64_t experts = 0;      ///< of them
  int64_t layer = 0;        ///< of the largest layer
  int64_t table = 0;        ///< of an embedding or output head
  int64_t ends = 0;         ///< of the tables that multi-token prediction holds
  int64_t over_stages = 0;  ///< that another stage holds too
};
/// Of a rank with those parts of the (resolved) model, by chunk.
Elements elements_of(const ModelConfig& config, const Layout& layout, const std::vector<StagePart>& parts);

/// Of elements that the ranks which hold the same ones share out, this rank's.
int64_t shared_out(const Elements& elements, const Layout& layout, const ZeroConfig& zero);

}  // namespace phalanx
