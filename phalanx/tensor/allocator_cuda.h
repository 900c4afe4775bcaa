// The memory of GPU streams. CUDA's own allocation is called only on a miss.
//
// A block belongs to the stream it was allocated under: when its last tensor goes it returns to that stream's
// pool at once, though kernels that use it may still be queued, because whoever takes it next queues behind
// them. A block used on other streams too first waits for events recorded there. Streams, blocks and pools
// are never destroyed, only taken over, so that no destructor waits for a GPU.
//
// Blocks of up to 16 MiB serve their size again. Larger ones are cut from segments, and free neighbours are
// one: of a training step gradients take the memory that activations had.
#pragma once

#include <array>
#include <deque>
#include <mutex>
#include <string_view>
#include <vector>

#include "phalanx/tensor/allocator.h"
#include "phalanx/tensor/fault.h"
#include "phalanx/tensor/segments.h"
#include "phalanx/tensor/size_class.h"
#include "phalanx/tensor/stream.h"

struct CUstream_st;
struct CUevent_st;

namespace phalanx::cuda {

class StreamState;

/// A block of device memory. Lives as long as the process.
struct Block : Storage {
  std::vector<StreamState*> used_on;  // other streams than its home's
  std::vector<CUevent_st*> pending;   // the block is free when all have passed
  bool carved = false;                // from the reserve: never given back
  Segments::Range* range = nullptr;   // of a block that is cut from a segment
};

/// One GPU of this process: its reserve, its streams, and events to reuse. Thread-safe.
class GpuState {
 public:
  /// The one of `device`, set up at first use: Error when this build's kernels do not run there.
  static GpuState& of(Device device);

  /// A stream nobody holds, or a new one.
  StreamState& take_stream(Priority priority);
  void give_stream(StreamState& stream) noexcept;

  /// A new block of `bytes`, or if there is no room for them of `least`; from the reserve while it lasts.
  /// Error when the GPU is full, even after idle memory, and that of `stream`, was given back.
  Block& new_block(size_t bytes, size_t least, StreamState& stream);
  CUevent_st* take_event();
  void give_event(CUevent_st* event);

 private:
  friend struct GpuTable;
  explicit GpuState(Device device) : device_(device) {}
  void set_up(size_t reserve_bytes);
  std::byte* carve(size_t bytes);
  std::byte* device_memory(size_t bytes, StreamState& stream);

  Device device_;
  std::mutex mutex_;  // locked before any StreamState's
  bool ready_ = false;
  std::byte* reserve_ = nullptr;
  size_t reserve_left_ = 0;
  std::deque<StreamState> streams_;
  std::vector<StreamState*> idle_;
  std::deque<Block> blocks_;
  std::mutex events_mutex_;  // locked after any StreamState's
  std::vector<CUevent_st*> events_;
};

/// Pinned host memory through which copies go, in pieces that alternate, and where the fault is read.
struct Staging {
  static constexpr size_t kPieceBytes = size_t{4} << 20;
  static constexpr size_t kPieces = 2;

  struct Piece {
    std::byte* data = nullptr;
    CUevent_st* busy = nullptr;  // until this event, a copy uses data
  };
  std::array<Piece, kPieces> pieces;
  size_t next = 0;
  Fault* fault = nullptr;
};

/// A queue and its pool. Blocks may be released, and uses recorded, on any thread; the rest is for the thread
/// that holds the stream.
class StreamState final : public Allocator {
 public:
  StreamState(Device device, GpuState& gpu, Priority priority);
  StreamState(const StreamState&) = delete;
  StreamState& operator=(const StreamState&) = delete;

  Storage* allocate(size_t bytes) override;
  void release(Storage* storage) noexcept override;
  MemoryStats stats() const override;
  void reset_peak() override;

  /// Counts `other` among the streams that use a block of this pool.
  void record_use(Storage* storage, StreamState& other);
  /// Gives free blocks back to CUDA, and says how many bytes; waits for the GPU.
  size_t trim() noexcept;

  Device device() const { return device_; }
  Priority priority() const { return priority_; }
  CUstream_st* native() const { return stream_; }
  Staging& staging() { return staging_; }
  /// Where kernels of this stream report, in device memory.
  Fault* fault() const { return fault_; }
  // cuda_check.cuh: queued
  std::string_view last_op;
  bool waits_for_each = false;

  /// Queues a copy of the fault to staging().fault.
  void fetch_fault();
  /// After the fetched fault has arrived: throws BrokenPromise if there is one, and forgets it.
  void check_fetched_fault();

 private:
  Storage* take(Block& block);
  Block* reuse(const SizeClass& c);
  Block* cut(size_t bytes);
  size_t segment_for(size_t bytes) const;
  void settle();  // pending blocks whose events have passed become free
  void push_free(Block& block);
  Block* pop_free(size_t size_class);

  const Device device_;
  const Priority priority_;
  GpuState& gpu_;
  CUstream_st* stream_ = nullptr;
  Fault* fault_ = nullptr;
  Staging staging_;

  mutable std::mutex mutex_;
  std::array<Storage*, SizeClass::kCount> free_{};
  Segments segments_;
  std::deque<Block> cut_blocks_;
  std::vector<Block*> uncut_;  // of them, without memory
  std::vector<Block*> pending_;
  MemoryStats stats_;
};

/// What cuda_initialise was given; GPUs are set up with it.
void set_options(const CudaOptions& options);
/// Error when kernels of this build do not run on `device` (the current one).
void check_kernels(Device device);

}  // namespace phalanx::cuda
