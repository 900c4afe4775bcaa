// What the slices of one microbatch share: it is cut along its sequences, and a layer that looks at other
// tokens finds here what it saw of those before.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "phalanx/parallel/kv_history.h"

namespace phalanx {

/// Of a router: B sequences, E experts.
struct RouterHistory {
  Tensor counts_BE;  ///< f64: how often each expert was chosen, summed over the slices so far
  std::vector<Tensor> taken_BE =
      {};  ///< i64, by slice: what experts have taken of each sequence up to its end
};

struct LayerHistory {
  KvHistory attention;
  RouterHistory router;
};

/// Of the layers of a stage. Only memory of a size that stays is kept from step to step.
class SliceHistory {
 public:
  /// That of the model's layer of this number, made at first use.
  LayerHistory& layer(int number) {
    for (auto& [at, history] : layers_) {
      if (at == number) return *history;
    }
    layers_.emplace_back(number, std::make_unique<LayerHistory>());
    return *layers_.back().second;
  }
  /// Forgets a microbatch that has passed.
  void clear() {
    for (auto& [at, history] : layers_) {
      history->attention.clear();
      history->router.counts_BE = Tensor();
      history->router.taken_BE.clear();
    }
  }

 private:
  std::vector<std::pair<int, std::unique_ptr<LayerHistory>>> layers_;
};

}  // namespace phalanx
