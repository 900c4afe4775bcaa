// Kernels that start before the one in front of them has ended (CUDA C++ Programming Guide, programmatic
// dependent launch): they fetch what it does not write, then wait for it. On Hopper; elsewhere they start
// when it has ended.
#pragma once

#include <array>
#include <string_view>

#include "phalanx/tensor/cuda_check.cuh"
#include "phalanx/tensor/stream.h"

namespace phalanx::cuda {

/// From here on in all blocks (or their ends), the next kernel may start, if it was launched so. Whatever
/// this one writes is seen behind wait_for_kernel all the same.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// The kernels in front have ended, and what they wrote is here. Every thread of a kernel that was launched
/// early calls it, before it reads what others write and before it writes.
__device__ inline void wait_for_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// The blocks of a launch, so many of them next to each other in clusters.
struct Grid {
  dim3 blocks;
  dim3 threads;
  unsigned cluster = 1;
  size_t shared_bytes = 0;  // dynamic
};

/// Launches a kernel of an op that calls wait_for_kernel, early. All of these leave L1 as little memory as
/// they can: a multiprocessor that were to be divided anew would have to be empty.
template <class... Parameters, class... Arguments>
void launch_early(std::string_view op, void (*kernel)(Parameters...), const Grid& grid,
                  const Arguments&... arguments) {
  std::array<cudaLaunchAttribute, 3> attributes = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  attributes[1].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  attributes[2].id = cudaLaunchAttributeClusterDimension;
  attributes[2].val.clusterDim = {grid.cluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = current_stream().native();
  config.attrs = attributes.data();
  config.numAttrs = grid.cluster > 1 ? 3 : 2;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), op);
  queued(op);
}

}  // namespace phalanx::cuda
