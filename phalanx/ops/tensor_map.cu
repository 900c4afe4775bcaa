
#include <array>

#include "phalanx/ops/tensor_map.cuh"
#include "phalanx/tensor/cuda_check.cuh"

namespace phalanx::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found at run time: the library need not be linked where there is no GPU.
Encode encode() {
  static const Encode function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
        "cudaGetDriverEntryPointByVersion");
    if (result != cudaDriverEntryPointSuccess) throw Error("the CUDA driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(found);
  }();
  return function;
}

}  // namespace

CUtensorMap tensor_map(const Tensor& t, int box_rows) {
  PHX_CHECK(t.dtype() == DType::bf16, "a tensor map of {}", dtype_name(t.dtype()));
  const bool planes = t.shape().rank() == 3;
  const auto columns = static_cast<cuuint64_t>(t.dim(planes ? 2 : 1));
  const auto rows = static_cast<cuuint64_t>(t.dim(planes ? 1 : 0));
  constexpr cuuint64_t kElement = sizeof(bf16);
  const std::array<cuuint64_t, 3> sizes = {columns, rows, planes ? static_cast<cuuint64_t>(t.dim(0)) : 1};
  const std::array<cuuint64_t, 2> strides = {columns * kElement, columns * rows * kElement};
  const std::array<cuuint32_t, 3> box = {kBoxRowBytes / kElement, static_cast<cuuint32_t>(box_rows), 1};
  const std::array<cuuint32_t, 3> steps = {1, 1, 1};
  CUtensorMap map;
  const CUresult status =
      encode()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, t.address(), sizes.data(), strides.data(),
               box.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  PHX_CHECK(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled of {} gave {}", t.shape(),
            static_cast<int>(status));
  return map;
}

}  // namespace phalanx::cuda
