
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

// A tensor [planes, rows, columns], or [rows, columns].
CUtensorMap make_map(const Tensor& t, CUtensorMapDataType type, std::array<cuuint32_t, 2> box_of_plane,
                     CUtensorMapSwizzle swizzle) {
  const bool planes = t.shape().rank() == 3;
  const auto columns = static_cast<cuuint64_t>(t.dim(planes ? 2 : 1));
  const auto rows = static_cast<cuuint64_t>(t.dim(planes ? 1 : 0));
  const cuuint64_t row_bytes = columns * dtype_size(t.dtype());
  const std::array<cuuint64_t, 3> sizes = {columns, rows, planes ? static_cast<cuuint64_t>(t.dim(0)) : 1};
  const std::array<cuuint64_t, 2> strides = {row_bytes, row_bytes * rows};
  const std::array<cuuint32_t, 3> box = {box_of_plane[0], box_of_plane[1], 1};
  const std::array<cuuint32_t, 3> steps = {1, 1, 1};
  CUtensorMap map;
  const CUresult status = encode()(&map, type, 3, t.address(), sizes.data(), strides.data(), box.data(),
                                   steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  PHX_CHECK(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled of {} gave {}", t.shape(),
            static_cast<int>(status));
  return map;
}

}  // namespace

CUtensorMap tensor_map(const Tensor& t, int box_rows) {
  const bool eight_bits = t.dtype() == DType::f8e4m3;
  PHX_CHECK(eight_bits || t.dtype() == DType::bf16, "a tensor map of {}", dtype_name(t.dtype()));
  const auto columns = static_cast<cuuint32_t>(kBoxRowBytes / static_cast<int64_t>(dtype_size(t.dtype())));
  return make_map(t, eight_bits ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                  {columns, static_cast<cuuint32_t>(box_rows)}, CU_TENSOR_MAP_SWIZZLE_128B);
}

CUtensorMap tensor_map_of_rows(const Tensor& t, int box_columns) {
  PHX_CHECK(t.dtype() == DType::f32, "a tensor map of rows of {}", dtype_name(t.dtype()));
  return make_map(t, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, {static_cast<cuuint32_t>(box_columns), 1},
                  CU_TENSOR_MAP_SWIZZLE_NONE);
}

}  // namespace phalanx::cuda
