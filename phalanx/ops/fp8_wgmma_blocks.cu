#include "phalanx/ops/fp8_wgmma.cuh"

namespace phalanx::cuda {

bool fp8_wgmma_blocks(const Fp8Product& p) {
  return p.y.dtype() == DType::bf16 ? launch_fp8_wgmma<false, bf16>(p) : launch_fp8_wgmma<false, float>(p);
}

}  // namespace phalanx::cuda
