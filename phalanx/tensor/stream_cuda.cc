#include <cstdlib>
#include <utility>

#include "phalanx/tensor/allocator_cuda.h"
#include "phalanx/tensor/cuda_check.cuh"
#include "phalanx/tensor/cuda_tensor.h"
#include "phalanx/tensor/stream.h"
#include "phalanx/tensor/stream_wait.h"
#include "phalanx/tensor/timeline.h"

namespace phalanx {

namespace {
thread_local Stream* current = nullptr;
}

namespace cuda {

int initialise(const CudaOptions& options) {
  PHX_CHECK(options.hardware_connections >= 1 && options.hardware_connections <= 32,
            "{} hardware connections, possible are 1 to 32", options.hardware_connections);
  set_options(options);
  // How the driver is told before it starts; nothing of ours reads these.
  // lint-allow(environment): CUDA offers no other way to set the number of connections
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", std::to_string(options.hardware_connections).c_str(), 1);
  // lint-allow(environment): CUDA offers no other way to load all kernels at start
  setenv("CUDA_MODULE_LOADING", "EAGER", 1);
  int gpus = 0;
  const cudaError_t status = cudaGetDeviceCount(&gpus);
  if (status != cudaSuccess || gpus == 0) {
    throw Error(
        "no NVIDIA GPU can be used ({}): this build needs a driver for CUDA {}.{} or newer; the CPU needs "
        "none",
        status == cudaSuccess ? "none was found" : cudaGetErrorString(status), CUDART_VERSION / 1000,
        CUDART_VERSION % 1000 / 10);
  }
  return gpus;
}

std::shared_ptr<void> enter(Device device) {
  struct Entered {
    explicit Entered(Device on) : stream(on), scope(stream) {}
    Stream stream;
    StreamScope scope;
  };
  return std::make_shared<Entered>(device);
}

std::shared_ptr<void> background(Device device) {
  return std::make_shared<Stream>(device, Priority::background);
}

std::shared_ptr<void> enter_background(const std::shared_ptr<void>& stream) {
  auto& background = *static_cast<Stream*>(stream.get());
  Event so_far;
  so_far.record(current_stream());
  background.wait(so_far);
  return std::make_shared<StreamScope>(background);
}

void synchronise() { current_stream().synchronise(); }

void queued(std::string_view op) {
  StreamState& stream = current_stream().state();
  stream.last_op = op;
  if (Timeline* const traced = timeline()) traced->mark(current_stream(), op);
  if (stream.waits_for_each) check(cudaStreamSynchronize(stream.native()), op);
}

void wait_for_each_op(bool on) { current_stream().state().waits_for_each = on; }

std::string_view last_op() { return current_stream().state().last_op; }

uint64_t memory_of(Device device) {
  cudaDeviceProp gpu;
  check(cudaGetDeviceProperties(&gpu, device.index), "cudaGetDeviceProperties");
  return gpu.totalGlobalMem;
}

Allocator& allocator(Device device) {
  const Stream& stream = current_stream();
  PHX_CHECK(stream.device() == device, "memory of {} on a thread whose stream is of {}", device_name(device),
            device_name(stream.device()));
  return stream.state();
}

}  // namespace cuda

Event::~Event() {
  if (event_) (void)cudaEventDestroy(event_);
}

void Event::record(Stream& stream) {
  if (event_ && of_ != stream.device()) {  // what waits for it already goes on doing so
    cuda::check(cudaEventDestroy(std::exchange(event_, nullptr)), "cudaEventDestroy");
  }
  if (!event_) {
    cuda::check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
    of_ = stream.device();
  }
  cuda::check(cudaEventRecord(event_, stream.native()), "cudaEventRecord");
}

bool Event::passed() const {
  if (!event_) return true;
  const cudaError_t status = cudaEventQuery(event_);
  if (status == cudaErrorNotReady) return false;
  cuda::check(status, "cudaEventQuery");
  return true;
}

void Event::wait() const {
  if (event_) cuda::wait_for(event_, "cudaEventSynchronize");
}

Stream::Stream(Device device, Priority priority) : device_(device) {
  PHX_CHECK(device.is_cuda(), "a stream of {}", device_name(device));
  state_ = &cuda::GpuState::of(device).take_stream(priority);
  // Without looking around (stream_wait.h): who looks may be making this stream.
  cuda::check(cudaStreamSynchronize(native()), "a kernel or copy failed");
  (void)std::exchange(*state_->staging().fault, cuda::Fault{});
  state_->last_op = "";
  state_->waits_for_each = false;
}

Stream::~Stream() { cuda::GpuState::of(device_).give_stream(*state_); }

void Stream::synchronise() {
  state_->fetch_fault();
  cuda::wait_for(native(), "a kernel or copy failed");
  state_->check_fetched_fault();
}

void Stream::wait(const Event& event) {
  if (!event.event_) return;
  cuda::check(cudaStreamWaitEvent(native(), event.event_, 0), "cudaStreamWaitEvent");
  if (cuda::Timeline* const traced = cuda::timeline()) traced->mark(*this, "");
}

MemoryStats Stream::memory() const { return state_->stats(); }
void Stream::reset_peak() { state_->reset_peak(); }
CUstream_st* Stream::native() const { return state_->native(); }
cuda::Fault* Stream::fault() const { return state_->fault(); }

StreamScope::StreamScope(Stream& stream) : previous_(std::exchange(current, &stream)) {
  cuda::check(cudaSetDevice(stream.device().index), "cudaSetDevice");
}

StreamScope::~StreamScope() {
  current = previous_;
  if (current) (void)cudaSetDevice(current->device().index);
}

Stream& current_stream() {
  PHX_CHECK(current != nullptr, "this thread has no StreamScope");
  return *current;
}

void record_stream(const Tensor& tensor, Stream& stream) {
  PHX_CHECK(tensor.on_cuda(), "the stream of a tensor on {}", device_name(tensor.device()));
  static_cast<cuda::StreamState*>(tensor.storage()->home)->record_use(tensor.storage(), stream.state());
}

}  // namespace phalanx
