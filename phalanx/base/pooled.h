// Small objects from the coroutine frames' free lists, so that steady-state code allocates nothing.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "phalanx/base/task.h"

namespace phalanx {

/// A standard allocator over the calling thread's free lists.
template <class T>
struct PoolAllocator {
  using value_type = T;
  PoolAllocator() = default;
  template <class U>
  PoolAllocator(const PoolAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(detail::frame_allocate(n * sizeof(T))); }
  void deallocate(T* p, size_t n) noexcept { detail::frame_release(p, n * sizeof(T)); }
  friend bool operator==(PoolAllocator, PoolAllocator) { return true; }
};

template <class T>
using PooledVector = std::vector<T, PoolAllocator<T>>;

/// Derive from Pooled<T> to take T's `new` from the free lists.
template <class T>
struct Pooled {
  static void* operator new(size_t bytes) { return detail::frame_allocate(bytes); }
  static void operator delete(void* p, size_t bytes) noexcept { detail::frame_release(p, bytes); }
};

}  // namespace phalanx
