#include "phalanx/tensor/device.h"

#include <unistd.h>

#include <atomic>

#include "phalanx/base/error.h"
#include "phalanx/tensor/cuda_tensor.h"

namespace phalanx {

std::string device_name(Device device) {
  return device.is_cuda() ? format("cuda:{}", static_cast<int>(device.index)) : "cpu";
}

namespace {
std::atomic<int> started = 0;  // GPUs that cuda_initialise found
}

int cuda_initialise(const CudaOptions& options) {
  if constexpr (kHaveCuda) {
    started = cuda::initialise(options);
    return started;
  }
  throw Error("this build of Phalanx has no CUDA: build with `cmake --preset cuda`, or use the CPU");
}

int cuda_devices() {
  static const int count = started > 0 ? started.load() : cuda_initialise();
  return count;
}

Device device_of_rank(Device::Kind kind, int rank) {
  return kind == Device::Kind::cpu ? kCpu : cuda_device(rank % cuda_devices());
}

DeviceScope::DeviceScope(Device device) {
  if (!device.is_cuda()) return;
  if constexpr (kHaveCuda) {
    stream_ = cuda::enter(device);
    return;
  }
  throw Error("{} in a build of Phalanx without CUDA: build with `cmake --preset cuda`, or use the CPU",
              device_name(device));
}

void synchronise(Device device) {
  if constexpr (kHaveCuda) {
    if (device.is_cuda()) cuda::synchronise();
  }
}

void wait_for_each_op([[maybe_unused]] Device device, [[maybe_unused]] bool on) {
  if constexpr (kHaveCuda) {
    if (device.is_cuda()) cuda::wait_for_each_op(on);
  }
}

std::string last_op([[maybe_unused]] Device device) {
  if constexpr (kHaveCuda) {
    if (device.is_cuda()) return std::string(cuda::last_op());
  }
  return {};
}

uint64_t memory_of(Device device) {
  if constexpr (kHaveCuda) {
    if (device.is_cuda()) return cuda::memory_of(device);
  }
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace phalanx
