#include "phalanx/ops/grouped_wgmma.cuh"

namespace phalanx::cuda {

bool grouped_wgmma_nt(const GroupedProduct& p) { return launch_grouped_wgmma<Form::nt, bf16>(p); }

}  // namespace phalanx::cuda
