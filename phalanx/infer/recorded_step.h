// Work on a GPU that is recorded once and replayed: what is queued does not change, only the tensors that it
// reads and writes.
#pragma once

#include <memory>

#include "phalanx/base/function_ref.h"

namespace phalanx::cuda {

/// Queues what `step` queues, behind what the calling thread's stream has queued so far; what that queues
/// next comes behind. The first time of `recorded` (at first null) step is called as it is, the second time
/// it is recorded as a CUDA graph, later that is replayed and step is not called. It does the same each time,
/// its sizes included: it copies nothing from or to the host, and what it reads and writes besides what it
/// allocates lives as long as `recorded`. That has a stream of its own, whose memory nothing else uses.
void run_recorded(std::shared_ptr<void>& recorded, FunctionRef<void()> step);

}  // namespace phalanx::cuda
