#include "phalanx/tensor/cuda_check.cuh"
#include "phalanx/tensor/stream.h"
#include "tests/train/gpu_trap.h"

namespace phalanx::test {
namespace {

__global__ void trap() { __trap(); }

}  // namespace

void queue_trap() {
  trap<<<1, 1, 0, current_stream().native()>>>();
  cuda::check_launch("trap");
}

}  // namespace phalanx::test
