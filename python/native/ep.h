// phalanx/ep for Python: dispatch and combine on a rank, and the placement of experts.
#pragma once

#include <nanobind/nanobind.h>

namespace phalanx::python {

/// Defines Handle, layout, dispatch, dispatch_again and combine.
void bind_buffer(nanobind::module_& m);
/// Defines LowLatencyHandle, Hook, low_latency_dispatch, low_latency_combine and what there is for masks.
void bind_low_latency(nanobind::module_& m);
/// Defines rebalance.
void bind_balance(nanobind::module_& m);

}  // namespace phalanx::python
