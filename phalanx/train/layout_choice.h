// Which layouts a model can have.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "phalanx/model/config.h"

namespace phalanx {

/// The layouts of `ranks` ranks that fit the model (misfit): every pp, tp and cp, dp of the rest, every ep
/// and etp.
std::vector<Layout> layouts_of_model(const ModelConfig& model, int ranks);

/// For the message that `wanted` does not fit: "; these layouts of 4 ranks do: …", at most three that `fits`
/// takes, those whose axes are nearest (by factors) first; of the nearest number of ranks, at most twice as
/// many, if there is none of as many. "": there is no such layout, or one rank is wanted, or so many (over
/// 128) that the search would take long.
std::string other_layouts(const ModelConfig& model, const Layout& wanted,
                          const std::function<bool(const Layout&)>& fits);

}  // namespace phalanx
