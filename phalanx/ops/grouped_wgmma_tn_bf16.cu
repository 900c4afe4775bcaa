#include "phalanx/ops/grouped_wgmma.cuh"

namespace phalanx::cuda {

bool grouped_wgmma_tn_bf16(const GroupedProduct& p) { return launch_grouped_wgmma<Form::tn, bf16>(p); }

}  // namespace phalanx::cuda
