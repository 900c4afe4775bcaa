#include "phalanx/ops/fp8_wgmma.cuh"

namespace phalanx::cuda {

bool fp8_wgmma_lines(const Fp8Product& p) {
  return p.y.dtype() == DType::bf16 ? launch_fp8_wgmma<true, bf16>(p) : launch_fp8_wgmma<true, float>(p);
}

}  // namespace phalanx::cuda
