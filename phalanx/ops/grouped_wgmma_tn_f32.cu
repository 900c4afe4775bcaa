#include "phalanx/ops/grouped_wgmma.cuh"

namespace phalanx::cuda {

bool grouped_wgmma_tn_f32(const GroupedProduct& p) { return launch_grouped_wgmma<Form::tn, float>(p); }

}  // namespace phalanx::cuda
