// Batches of a microbatch that is cut along its sequences (TeraPipe, Li et al. 2021).
#pragma once

#include <vector>

#include "phalanx/model/layer.h"

namespace phalanx {

/// Adds to `batches` those of one microbatch, a rank's part of each: of `whole`, whose rows are stretches of
/// `context` tokens one after the other, slice s has the tokens s·L … (s + 1)·L − 1 of each, L = context /
/// slices. The documents of a stretch (sequence_offsets) may end anywhere. One slice is the microbatch.
/// `slices` divides the context.
void add_slices(std::vector<Batch>& batches, const Batch& whole, int64_t context, int slices,
                const ContextShare& share);

}  // namespace phalanx
