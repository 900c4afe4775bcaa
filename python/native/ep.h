// phalanx/ep for Python: dispatch and combine on a rank, and the placement of experts.
#pragma once

#include <nanobind/nanobind.h>

namespace phalanx::python {

/// Defines Handle, layout, dispatch, dispatch_again and combine.
void bind_buffer(nanobind::module_& m);
/// Defines rebalance.
void bind_balance(nanobind::module_& m);

}  // namespace phalanx::python
