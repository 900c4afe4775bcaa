// Streams: queues of work on a GPU, each a rank's own. The work of one stream runs in order; between streams,
// events order it, and the host never waits unless it says so.
#pragma once

#include "phalanx/base/task.h"
#include "phalanx/tensor/tensor.h"

struct CUstream_st;
struct CUevent_st;

namespace phalanx {

namespace cuda {
class StreamState;
struct Fault;
}  // namespace cuda
class Stream;

/// A point in a stream's work.
class Event {
 public:
  /// Not recorded: it has passed.
  Event() = default;
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)), of_(other.of_) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    std::swap(of_, other.of_);
    return *this;
  }
  ~Event();

  /// The end of all work queued on `stream` so far; of any GPU's, also from one time to the next.
  void record(Stream& stream);
  /// Whether that work has finished; never blocks.
  bool passed() const;
  /// Blocks the host until it has.
  void wait() const;

 private:
  friend class Stream;
  CUevent_st* event_ = nullptr;
  Device of_ = {};  // CUDA's event is of one GPU, whose streams alone can record it
};

/// Which streams' blocks of threads go first where several wait for room on a GPU.
enum class Priority : uint8_t { normal, background };

/// Owns a queue of one GPU, the pool of memory of what is queued there, and pinned staging for copies. For
/// one thread at a time. Destroying it never waits: queue and pool go to the next Stream made on that GPU,
/// tensors live on.
class Stream {
 public:
  /// Needs cuda_initialise. Waits, if it takes over a queue, for what is left in it.
  explicit Stream(Device device, Priority priority = Priority::normal);
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream();

  Device device() const { return device_; }
  /// Blocks the host until all queued work has finished. Error when CUDA failed; BrokenPromise when a kernel
  /// found what a CPU op would have refused at once (an index out of range).
  void synchronise();
  /// What is queued here from now on starts after `event`; does not block the host.
  void wait(const Event& event);
  /// Of the blocks allocated under this stream.
  MemoryStats memory() const;
  void reset_peak();

  /// CUDA's own stream, and where its kernels report broken promises (in device memory).
  CUstream_st* native() const;
  cuda::Fault* fault() const;
  cuda::StreamState& state() const { return *state_; }

 private:
  Device device_;
  cuda::StreamState* state_;
};

/// Gives the calling thread (a rank) its stream: tensors are allocated and ops queued there.
class StreamScope {
 public:
  explicit StreamScope(Stream& stream);
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;
  ~StreamScope();

 private:
  Stream* previous_;
};

/// The stream of the innermost StreamScope of the calling thread; there must be one.
Stream& current_stream();

/// Says that work queued on `stream`, not the one under which the tensor was allocated, uses it: its memory
/// is not reused before the work that is queued there when the last tensor goes has finished. Any thread.
void record_stream(const Tensor& tensor, Stream& stream);

/// `co_await Behind(event)`: another task may run here; what the awaiting task queues afterwards on its
/// current stream starts behind the event. The host does not wait. The event outlives the await.
class [[nodiscard]] Behind final : public Waitable {
 public:
  explicit Behind(const Event& event) : event_(&event) {}

  bool poll() override { return true; }
  void wait() override {}

  bool await_ready() const noexcept { return false; }
  template <class P>
  void await_suspend(std::coroutine_handle<P> self) noexcept {
    Suspend(*this).await_suspend(self);
  }
  void await_resume() const { current_stream().wait(*event_); }

 private:
  const Event* event_;
};

}  // namespace phalanx
