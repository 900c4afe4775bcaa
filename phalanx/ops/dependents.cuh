// Kernels that start before the one in front of them has ended (CUDA C++ Programming Guide, programmatic
// dependent launch): they fetch what it does not write, then wait for it. On Hopper; elsewhere they start
// when it has ended.
#pragma once

#include "phalanx/tensor/cuda_check.cuh"

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

/// Launches a kernel that calls wait_for_kernel, early.
template <class... Parameters, class... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 blocks, unsigned threads, CUstream_st* stream,
                  const Arguments&... arguments) {
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "cudaLaunchKernelEx");
}

}  // namespace phalanx::cuda
