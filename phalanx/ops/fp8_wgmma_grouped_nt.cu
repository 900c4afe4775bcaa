#include "phalanx/ops/fp8_wgmma.cuh"

namespace phalanx::cuda {

bool fp8_wgmma_grouped_nt(const Fp8Product& p, const Tensor& offsets) {
  return p.y.dtype() == DType::bf16 ? launch_fp8_grouped<Form::nt, bf16>(p, offsets)
                                    : launch_fp8_grouped<Form::nt, float>(p, offsets);
}

}  // namespace phalanx::cuda
