// The machine's matrix-product speed, the yardstick of every share that is printed.
#pragma once

#include <cstdint>

#include "phalanx/tensor/dtype.h"

namespace phalanx {

/// Operations a second (a multiply-add is two) of matmul_nt on n×n matrices with the calling rank's threads:
/// the best of the runs that fit into `seconds`, at least one after a warm-up.
double measure_matmul_flops(DType dtype, int64_t n = 512, double seconds = 0.1);

}  // namespace phalanx
