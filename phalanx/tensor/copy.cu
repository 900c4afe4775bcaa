// Copies between host and GPU, and the little that tensors themselves ask of kernels.
#include <cstring>

#include "phalanx/tensor/allocator_cuda.h"
#include "phalanx/tensor/cuda_check.cuh"
#include "phalanx/tensor/cuda_tensor.h"
#include "phalanx/tensor/stream.h"
#include "phalanx/tensor/stream_wait.h"

namespace phalanx::cuda {
namespace {

__global__ void write_count(int64_t* to, int64_t value) { *to = value; }

constexpr size_t kPieceBytes = Staging::kPieceBytes;

size_t pieces_of(size_t bytes) { return (bytes + kPieceBytes - 1) / kPieceBytes; }
size_t piece_size(size_t bytes, size_t i) { return std::min(kPieceBytes, bytes - i * kPieceBytes); }

void from_host(std::byte* to, const std::byte* from, size_t bytes, StreamState& stream) {
  Staging& staging = stream.staging();
  for (size_t i = 0; i < pieces_of(bytes); ++i) {
    const size_t size = piece_size(bytes, i);
    const Staging::Piece& piece = staging.pieces[staging.next++ % Staging::kPieces];
    wait_for(piece.busy, "a copy to the GPU");
    std::memcpy(piece.data, from + i * kPieceBytes, size);
    check(cudaMemcpyAsync(to + i * kPieceBytes, piece.data, size, cudaMemcpyHostToDevice, stream.native()),
          "cudaMemcpyAsync");
    check(cudaEventRecord(piece.busy, stream.native()), "cudaEventRecord");
  }
}

void to_host(std::byte* to, const std::byte* from, size_t bytes, StreamState& stream) {
  Staging& staging = stream.staging();
  const size_t first = staging.next;
  const auto piece = [&](size_t i) -> Staging::Piece& {
    return staging.pieces[(first + i) % Staging::kPieces];
  };
  const auto finish = [&](size_t i) {
    wait_for(piece(i).busy, "a kernel or copy failed");
    std::memcpy(to + i * kPieceBytes, piece(i).data, piece_size(bytes, i));
  };
  stream.fetch_fault();
  const size_t pieces = pieces_of(bytes);
  for (size_t i = 0; i < pieces; ++i) {
    if (i >= Staging::kPieces) finish(i - Staging::kPieces);
    check(cudaMemcpyAsync(piece(i).data, from + i * kPieceBytes, piece_size(bytes, i), cudaMemcpyDeviceToHost,
                          stream.native()),
          "cudaMemcpyAsync");
    check(cudaEventRecord(piece(i).busy, stream.native()), "cudaEventRecord");
  }
  for (size_t i = pieces - std::min(pieces, Staging::kPieces); i < pieces; ++i) finish(i);
  staging.next = first + pieces;
  stream.check_fetched_fault();
}

}  // namespace

void zero(const Tensor& t) {
  check(cudaMemsetAsync(t.address(), 0, t.bytes(), current_stream().native()), "cudaMemsetAsync");
}

void set_count(const Tensor& t, int64_t value) {
  write_count<<<1, 1, 0, current_stream().native()>>>(t.device_data<int64_t>(), value);
  check_launch("write_count");
}

void copy(const Tensor& to, const Tensor& from) {
  StreamState& stream = current_stream().state();
  // From another GPU, too: its addresses are known here.
  const Device here = to.on_cuda() ? to.device() : from.device();
  PHX_CHECK(here == stream.device(), "a copy of {} to {} on a stream of {}", device_name(from.device()),
            device_name(to.device()), device_name(stream.device()));
  if (!to.on_cuda()) return to_host(to.address(), from.address(), to.bytes(), stream);
  if (from.on_cuda()) {
    check(cudaMemcpyAsync(to.address(), from.address(), to.bytes(), cudaMemcpyDefault, stream.native()),
          "cudaMemcpyAsync");
  } else {
    from_host(to.address(), from.address(), to.bytes(), stream);
  }
  queued("copy");
}

void check_kernels(Device device) {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, write_count);
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
    cudaDeviceProp gpu;
    check(cudaGetDeviceProperties(&gpu, device.index), "cudaGetDeviceProperties");
    throw Error(
        "{} is a {} of compute capability {}.{}, which this build's kernels are not for: set "
        "CMAKE_CUDA_ARCHITECTURES and build again",
        device_name(device), gpu.name, gpu.major, gpu.minor);
  }
  check(status, "cudaFuncGetAttributes");
}

}  // namespace phalanx::cuda
