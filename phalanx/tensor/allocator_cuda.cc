#include "phalanx/tensor/allocator_cuda.h"

#include <algorithm>
#include <cstring>

#include "phalanx/base/check.h"
#include "phalanx/tensor/cuda_check.cuh"
#include "phalanx/tensor/cuda_tensor.h"
#include "phalanx/tensor/current_gpu.cuh"

namespace phalanx::cuda {
namespace {

constexpr size_t kMostKeptWhole = size_t{16} << 20;

bool is_cut(const SizeClass& c) { return c.bytes > kMostKeptWhole; }

// Null where the GPU has no room.
std::byte* malloc_if_free(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, bytes);
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return nullptr;
  }
  check(status, "cudaMalloc");
  return static_cast<std::byte*>(memory);
}

}  // namespace

// All GPUs of the process; never destroyed: tensors may outlive main.
struct GpuTable {
  std::mutex mutex;
  bool initialised = false;
  CudaOptions options;
  std::array<GpuState*, 256> gpus{};

  static GpuTable& get() {
    static GpuTable* const table = new GpuTable;
    return *table;
  }
  GpuState& of(Device device) {
    const std::lock_guard lock(mutex);
    PHX_CHECK(initialised, "{} is used before cuda_initialise", device_name(device));
    GpuState*& gpu = gpus[device.index];
    if (!gpu) gpu = new GpuState(device);
    if (gpu->ready_) return *gpu;
    gpu->set_up(options.reserve_bytes);
    for (GpuState* const other : gpus) {
      if (other && other != gpu && other->ready_) connect(device, other->device_);
    }
    return *gpu;
  }

  // Copies between the two then go straight, where their links allow it, and not by way of the host.
  static void connect(Device a, Device b) {
    for (const auto& [here, there] : {std::pair(b, a), std::pair(a, b)}) {
      int reachable = 0;
      check(cudaDeviceCanAccessPeer(&reachable, here.index, there.index), "cudaDeviceCanAccessPeer");
      if (reachable == 0) continue;
      const CurrentGpu current(here);
      const cudaError_t status = cudaDeviceEnablePeerAccess(there.index, 0);
      if (status == cudaErrorPeerAccessAlreadyEnabled) {
        (void)cudaGetLastError();
      } else {
        check(status, "cudaDeviceEnablePeerAccess");
      }
    }
  }
};

void set_options(const CudaOptions& options) {
  GpuTable& table = GpuTable::get();
  const std::lock_guard lock(table.mutex);
  PHX_CHECK(!table.initialised, "cuda_initialise is called once, at start");
  table.options = options;
  table.initialised = true;
}

GpuState& GpuState::of(Device device) { return GpuTable::get().of(device); }

void GpuState::set_up(size_t reserve_bytes) {
  int gpus = 0;
  check(cudaGetDeviceCount(&gpus), "cudaGetDeviceCount");
  if (device_.index >= gpus)
    throw Error("{} is not there: this machine has {} GPUs", device_name(device_), gpus);
  const CurrentGpu current(device_);
  check_kernels(device_);
  if (reserve_bytes > 0) {
    void* memory = nullptr;
    if (cudaMalloc(&memory, reserve_bytes) != cudaSuccess) {
      (void)cudaGetLastError();
      size_t free_bytes = 0;
      size_t total = 0;
      check(cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo");
      throw Error("{}: {} bytes were to be reserved, {} of {} are free", device_name(device_), reserve_bytes,
                  free_bytes, total);
    }
    reserve_ = static_cast<std::byte*>(memory);
    reserve_left_ = reserve_bytes;
  }
  ready_ = true;
}

StreamState& GpuState::take_stream(Priority priority) {
  const std::lock_guard lock(mutex_);
  const auto at = std::ranges::find(idle_, priority, &StreamState::priority);
  if (at == idle_.end()) {
    const CurrentGpu current(device_);
    return streams_.emplace_back(device_, *this, priority);
  }
  StreamState& stream = **at;
  idle_.erase(at);
  return stream;
}

void GpuState::give_stream(StreamState& stream) noexcept {
  const std::lock_guard lock(mutex_);
  idle_.push_back(&stream);
}

Block& GpuState::new_block(size_t bytes, size_t least, StreamState& stream) {
  const std::lock_guard lock(mutex_);
  std::byte* data = carve(bytes);
  if (!data && (data = carve(least))) bytes = least;
  const bool carved = data != nullptr;
  if (!data && least < bytes) {
    data = malloc_if_free(bytes);
    if (!data) bytes = least;
  }
  if (!data) data = device_memory(bytes, stream);
  Block& block = blocks_.emplace_back();
  block.carved = carved;
  block.data = data;
  block.capacity = bytes;
  return block;
}

std::byte* GpuState::carve(size_t bytes) {
  constexpr size_t kAlignment = 512;  // as cudaMalloc's
  const size_t carved = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (carved > reserve_left_) return nullptr;
  reserve_left_ -= carved;
  return std::exchange(reserve_, reserve_ + carved);
}

std::byte* GpuState::device_memory(size_t bytes, StreamState& stream) {
  std::byte* memory = malloc_if_free(bytes);
  if (memory) return memory;
  stream.trim();
  for (StreamState* idle : idle_) idle->trim();
  memory = malloc_if_free(bytes);
  if (memory) return memory;
  size_t free_bytes = 0;
  size_t total = 0;
  check(cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo");
  throw Error(
      "{} is full: {} bytes are needed, {} of {} are free, this rank's tensors hold {}; use smaller "
      "microbatches or more ranks",
      device_name(device_), bytes, free_bytes, total, stream.stats().in_use);
}

CUevent_st* GpuState::take_event() {
  const std::lock_guard lock(events_mutex_);
  CUevent_st* event = nullptr;
  if (events_.empty()) {
    const CurrentGpu current(device_);
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  } else {
    event = events_.back();
    events_.pop_back();
  }
  return event;
}

void GpuState::give_event(CUevent_st* event) {
  const std::lock_guard lock(events_mutex_);
  events_.push_back(event);
}

StreamState::StreamState(Device device, GpuState& gpu, Priority priority)
    : device_(device), priority_(priority), gpu_(gpu) {
  // Pinned: the pieces, and behind them the fault.
  void* pinned = nullptr;
  void* fault = nullptr;
  int lowest = 0;
  int highest = 0;
  check(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "cudaDeviceGetStreamPriorityRange");
  check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking,
                                     priority == Priority::background ? lowest : highest),
        "cudaStreamCreate");
  check(cudaHostAlloc(&pinned, Staging::kPieces * Staging::kPieceBytes + sizeof(Fault), cudaHostAllocDefault),
        "cudaHostAlloc");
  auto* at = static_cast<std::byte*>(pinned);
  for (Staging::Piece& piece : staging_.pieces) {
    piece.data = at;
    check(cudaEventCreateWithFlags(&piece.busy, cudaEventDisableTiming), "cudaEventCreate");
    at += Staging::kPieceBytes;
  }
  staging_.fault = new (at) Fault;
  check(cudaMalloc(&fault, sizeof(Fault)), "cudaMalloc");
  fault_ = static_cast<Fault*>(fault);
  check(cudaMemsetAsync(fault_, 0, sizeof(Fault), stream_), "cudaMemsetAsync");
}

Storage* StreamState::allocate(size_t bytes) {
  const SizeClass c = size_class(bytes);
  size_t wanted = c.bytes;
  {
    const std::lock_guard lock(mutex_);
    Block* block = reuse(c);
    if (!block && !pending_.empty()) {
      settle();
      block = reuse(c);
    }
    if (block) return take(*block);
    if (is_cut(c)) wanted = segment_for(c.bytes);
  }
  Block& block = gpu_.new_block(wanted, c.bytes, *this);
  block.home = this;
  block.device = device_;
  const std::lock_guard lock(mutex_);
  stats_.reserved += block.capacity;
  ++stats_.system_allocations;
  if (!is_cut(c)) return take(block);
  segments_.add(block.data, block.capacity, block.carved);
  return take(*reuse(c));
}

Block* StreamState::reuse(const SizeClass& c) { return is_cut(c) ? cut(c.bytes) : pop_free(c.index); }

Block* StreamState::cut(size_t bytes) {
  Segments::Range* const range = segments_.take(bytes);
  if (!range) return nullptr;
  if (uncut_.empty()) uncut_.push_back(&cut_blocks_.emplace_back());
  Block& block = *uncut_.back();
  uncut_.pop_back();
  block.data = range->data;
  block.capacity = bytes;
  block.home = this;
  block.device = device_;
  block.range = range;
  return &block;
}

// More than a block takes, so that others find room beside it, and several together in its place.
size_t StreamState::segment_for(size_t bytes) const {
  constexpr size_t kMost = size_t{1} << 30;
  return std::max(bytes, std::min(size_class(stats_.reserved / 8).bytes, kMost));
}

Storage* StreamState::take(Block& block) {
  block.users.store(1, std::memory_order_relaxed);
  stats_.in_use += block.capacity;
  stats_.peak = std::max(stats_.peak, stats_.in_use);
  return &block;
}

void StreamState::release(Storage* storage) noexcept {
  auto& block = static_cast<Block&>(*storage);
  const std::lock_guard lock(mutex_);
  stats_.in_use -= block.capacity;
  if (block.used_on.empty()) return push_free(block);
  bool recorded = true;
  for (StreamState* other : block.used_on) {
    try {
      CUevent_st* const event = gpu_.take_event();
      block.pending.push_back(event);
      recorded = recorded && cudaEventRecord(event, other->stream_) == cudaSuccess;
    } catch (const Error&) {
      recorded = false;
    }
  }
  block.used_on.clear();
  if (recorded) pending_.push_back(&block);  // else the GPU has failed: the block is never used again
}

void StreamState::settle() {
  const auto passed = [&](Block* block) {
    const auto done = [](CUevent_st* event) { return cudaEventQuery(event) == cudaSuccess; };
    if (!std::ranges::all_of(block->pending, done)) return false;
    for (CUevent_st* event : block->pending) gpu_.give_event(event);
    block->pending.clear();
    push_free(*block);
    return true;
  };
  std::erase_if(pending_, passed);
}

void StreamState::push_free(Block& block) {
  if (block.range) {
    segments_.give(std::exchange(block.range, nullptr));
    uncut_.push_back(&block);
    return;
  }
  Storage*& head = free_[size_class(block.capacity).index];
  block.next_free = head;
  head = &block;
}

Block* StreamState::pop_free(size_t size_class) {
  Storage* const head = free_[size_class];
  if (head) free_[size_class] = head->next_free;
  return static_cast<Block*>(head);
}

size_t StreamState::trim() noexcept {
  const std::lock_guard lock(mutex_);
  size_t bytes = 0;
  for (Storage*& head : free_) {
    Storage* kept = nullptr;
    while (head) {
      auto& block = static_cast<Block&>(*head);
      head = block.next_free;
      if (block.carved || cudaFree(block.data) != cudaSuccess) {
        block.next_free = kept;
        kept = &block;
      } else {
        block.data = nullptr;  // the header stays behind, empty
        bytes += block.capacity;
      }
    }
    head = kept;
  }
  segments_.leave([&](std::byte* data, size_t of_segment) {
    if (cudaFree(data) != cudaSuccess) return false;
    bytes += of_segment;
    return true;
  });
  stats_.reserved -= bytes;
  return bytes;
}

MemoryStats StreamState::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void StreamState::reset_peak() {
  const std::lock_guard lock(mutex_);
  stats_.peak = stats_.in_use;
}

void StreamState::record_use(Storage* storage, StreamState& other) {
  if (&other == this) return;
  PHX_CHECK(other.device_ == device_, "a tensor on {} used on a stream of {}", device_name(device_),
            device_name(other.device_));
  auto& uses = static_cast<Block&>(*storage).used_on;
  const std::lock_guard lock(mutex_);
  if (std::ranges::find(uses, &other) == uses.end()) uses.push_back(&other);
}

void StreamState::fetch_fault() {
  check(cudaMemcpyAsync(staging_.fault, fault_, sizeof(Fault), cudaMemcpyDeviceToHost, stream_),
        "cudaMemcpyAsync");
}

void StreamState::check_fetched_fault() {
  if (staging_.fault->kind == FaultKind::none) return;
  const Fault fault = std::exchange(*staging_.fault, Fault{});
  check(cudaMemsetAsync(fault_, 0, sizeof(Fault), stream_), "cudaMemsetAsync");
  check_fault(fault);
}

void check_fault(const Fault& fault) {
  switch (fault.kind) {
    case FaultKind::none:
      return;
    case FaultKind::token:
      PHX_CHECK(false, "token {} of a vocabulary of {}", fault.value, fault.limit);
    case FaultKind::target:
      PHX_CHECK(false, "target {} of a vocabulary of {}", fault.value, fault.limit);
    case FaultKind::live_rows:
      PHX_CHECK(false, "{} live rows of {}", fault.value, fault.limit);
    case FaultKind::position:
      PHX_CHECK(false, "position {}", fault.value);
    case FaultKind::expert:
      PHX_CHECK(false, "a slot names expert {} of {}", fault.value, fault.limit);
    case FaultKind::same_number:
      PHX_CHECK(false, "two tokens have number {}", fault.value);
    case FaultKind::offset:
      PHX_CHECK(false, "offset {} of grouped rows, where at most {} can be", fault.value, fault.limit);
  }
}

}  // namespace phalanx::cuda
