#include <array>
#include <cstddef>
#include <new>

#include "phalanx/base/task.h"

namespace phalanx::detail {
namespace {

constexpr size_t kStep = 64;
constexpr size_t kClasses = 64;  // frames of up to 4 KiB; larger ones go to the heap

struct FreeFrame {
  FreeFrame* next;
};

struct Pool {
  std::array<FreeFrame*, kClasses> free{};
  ~Pool() {
    for (FreeFrame* frame : free) {
      while (frame) {
        FreeFrame* next = frame->next;
        ::operator delete(frame);
        frame = next;
      }
    }
  }
};

// A frame released on another thread than it came from simply changes pools.
thread_local Pool pool;

}  // namespace

void* frame_allocate(size_t bytes) {
  const size_t c = (bytes + kStep - 1) / kStep;
  if (c >= kClasses) return ::operator new(bytes);
  FreeFrame*& head = pool.free[c];
  if (!head) return ::operator new(c* kStep);
  FreeFrame* frame = head;
  head = frame->next;
  return frame;
}

void frame_release(void* frame, size_t bytes) noexcept {
  const size_t c = (bytes + kStep - 1) / kStep;
  if (c >= kClasses) {
    ::operator delete(frame);
    return;
  }
  pool.free[c] = new (frame) FreeFrame{pool.free[c]};
}

}  // namespace phalanx::detail
