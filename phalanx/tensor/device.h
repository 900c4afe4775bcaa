// Where a tensor lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "phalanx/base/error.h"

namespace phalanx {

/// What a GPU or its driver refused, or failed at: names the call, or what was waited for.
class DeviceError : public Error {
 public:
  using Error::Error;
};

// The one macro about CUDA: everything else asks this constant, `if constexpr (kHaveCuda)`. Without CUDA the
// twins of ops are declared but neither compiled nor called.
#ifdef PHALANX_HAVE_CUDA
inline constexpr bool kHaveCuda = true;
#else
inline constexpr bool kHaveCuda = false;
#endif

/// The CPU, or one GPU of this machine.
struct Device {
  enum class Kind : uint8_t { cpu, cuda };

  Kind kind = Kind::cpu;
  uint8_t index = 0;  // of the GPU

  bool is_cuda() const { return kind == Kind::cuda; }
  friend bool operator==(Device, Device) = default;
};

inline constexpr Device kCpu = {};
constexpr Device cuda_device(int index) { return {Device::Kind::cuda, static_cast<uint8_t>(index)}; }

/// The name in messages and configuration: "cpu", "cuda:0".
std::string device_name(Device device);

/// How this process uses its GPUs, decided once at start.
struct CudaOptions {
  int hardware_connections = 32;  ///< queues between host and GPU, 1 to 32: streams beyond share one
  size_t reserve_bytes = 0;  ///< of each GPU, taken at start; blocks are cut from it before more is taken
};

/// The one place where CUDA starts, called once, before any other use of it and before threads are made: sets
/// the number of hardware connections, has all kernels loaded now and not at their first launch (which would
/// make ranks that share a GPU wait for one another), and reserves memory. Gives the number of GPUs, at
/// least 1. Error when this build has no CUDA, the machine no driver or GPU, or the GPU not the memory.
int cuda_initialise(const CudaOptions& options = {});
/// GPUs that this process can use; the first call starts CUDA, unless cuda_initialise did.
int cuda_devices();

/// The device of a rank: ranks of a host take its GPUs in turn.
Device device_of_rank(Device::Kind kind, int rank);

/// What a thread that works on `device` needs, for as long as this lives: on a GPU a stream of its own
/// (tensor/stream.h), on which it allocates and queues; on the CPU nothing. Made and destroyed on that
/// thread.
class DeviceScope {
 public:
  explicit DeviceScope(Device device);

 private:
  std::shared_ptr<void> stream_;
};

/// Waits for what the calling thread has queued on `device`; on the CPU nothing is.
void synchronise(Device device);

/// From now on the calling thread waits for each op on `device`, a GPU, that it queues, so that a fault names
/// the op; or no longer does. On the CPU an op always returns when it is done.
void wait_for_each_op(Device device, bool on);
/// The op that the calling thread queued last on `device`, a GPU; "" of the CPU.
std::string last_op(Device device);

/// Bytes of memory of `device`: the machine's, or the GPU's.
uint64_t memory_of(Device device);

}  // namespace phalanx
