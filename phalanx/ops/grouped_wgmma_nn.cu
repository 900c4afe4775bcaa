#include "phalanx/ops/grouped_wgmma.cuh"

namespace phalanx::cuda {

bool grouped_wgmma_nn(const GroupedProduct& p) { return launch_grouped_wgmma<Form::nn, bf16>(p); }

}  // namespace phalanx::cuda
