#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <new>

#include "phalanx/base/task.h"

namespace phalanx::detail {
namespace {

// Blocks of one class have one size: of up to 4 KiB multiples of 64 bytes (coroutine frames), of more powers
// of two (vectors that grow with the batch).
constexpr size_t kStep = 64;
constexpr size_t kSmall = 64;
constexpr size_t kClasses = kSmall + 64;

struct Class {
  size_t index;
  size_t bytes;
};

Class class_of(size_t bytes) {
  const size_t steps = std::max<size_t>((bytes + kStep - 1) / kStep, 1);
  if (steps <= kSmall) return {steps, steps * kStep};
  const auto log = static_cast<size_t>(std::bit_width(bytes - 1));
  return {kSmall + log, size_t{1} << log};
}

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
  const Class c = class_of(bytes);
  FreeFrame*& head = pool.free[c.index];
  if (!head) return ::operator new(c.bytes);
  FreeFrame* frame = head;
  head = frame->next;
  return frame;
}

void frame_release(void* frame, size_t bytes) noexcept {
  FreeFrame*& head = pool.free[class_of(bytes).index];
  head = new (frame) FreeFrame{head};
}

}  // namespace phalanx::detail
