// How sure a router's choice was, and another choice in its place: what comparing two runs needs, where
// rounding alone may choose another expert. Made on the host, which waits for tensors on a GPU.
#pragma once

#include <span>
#include <vector>

#include "phalanx/ops/route.h"

namespace phalanx {

/// Of each token, [T]: the least gap of scores (with the bias; of groups, their sums) between what was chosen
/// and what was not; infinite where there is nothing else. `routing` is what route gave for this config and
/// bias.
std::vector<double> choice_margins(const Routing& routing, const RoutingConfig& config, const Tensor& bias_E);

/// Chooses for token t these K experts, with the weights that its scores give them.
void choose_instead(const Routing& routing, int64_t t, std::span<const int64_t> experts,
                    const RoutingConfig& config);

}  // namespace phalanx
