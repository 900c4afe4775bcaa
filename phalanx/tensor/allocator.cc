#include "phalanx/tensor/allocator.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <new>
#include <utility>

#include "phalanx/base/error.h"
#include "phalanx/tensor/regions.h"
#include "phalanx/tensor/size_class.h"

namespace phalanx {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kMostBytes = size_t{1} << 46;  // half the addresses of a process

Error no_memory(size_t bytes) { return Error("there is no memory for a tensor of {} bytes", bytes); }

class CpuAllocator final : public Allocator {
 public:
  explicit CpuAllocator(std::unique_ptr<MemoryFile> file = nullptr) : regions_(std::move(file)) {}

  Storage* allocate(size_t bytes) override {
    if (bytes > kMostBytes) throw no_memory(bytes);
    const SizeClass c = size_class(bytes);
    const std::lock_guard lock(mutex_);
    if (lent_) keep_all(std::exchange(lent_, nullptr));
    Storage* storage = free_[c.index];
    if (storage) {
      free_[c.index] = storage->next_free;
    } else {
      storage = new_block_or_error(c.bytes);
    }
    storage->users.store(1, std::memory_order_relaxed);
    ++owners_;
    stats_.in_use += storage->capacity;
    stats_.peak = std::max(stats_.peak, stats_.in_use);
    return storage;
  }

  void release(Storage* storage) noexcept override {
    {
      const std::lock_guard lock(mutex_);
      keep(storage);
    }
    drop_owner();
  }

  MemoryStats stats() const override {
    const std::lock_guard lock(mutex_);
    return stats_;
  }

  void reset_peak() override {
    const std::lock_guard lock(mutex_);
    stats_.peak = stats_.in_use;
  }

  std::optional<FilePlace> place(const Storage& storage) const override {
    const std::lock_guard lock(mutex_);
    return regions_.place(reinterpret_cast<const std::byte*>(&storage));
  }

  // The scope and every block in use own the allocator together. Other processes do not: the file keeps what
  // they use.
  void drop_owner() noexcept {
    bool last = false;
    {
      const std::lock_guard lock(mutex_);
      last = --owners_ == 0;
    }
    if (last) delete this;
  }

 private:
  // A block without users here is free, or waits for those of other processes.
  void keep(Storage* storage) noexcept {
    const bool lent = storage->lent.load(std::memory_order_acquire) > 0;
    Storage*& head = lent ? lent_ : free_[size_class(storage->capacity).index];
    storage->next_free = head;
    head = storage;
    if (!lent) stats_.in_use -= storage->capacity;
  }

  void keep_all(Storage* storages) noexcept {
    while (storages) {
      Storage* const next = storages->next_free;
      keep(storages);
      storages = next;
    }
  }

  Storage* new_block_or_error(size_t bytes) {
    try {
      return new_block(bytes);
    } catch (const std::bad_alloc&) {
      throw no_memory(bytes);
    }
  }

  // Header and data are one piece.
  Storage* new_block(size_t bytes) {
    static_assert(sizeof(Storage) <= kAlignment);
    std::byte* const memory = regions_.take(kAlignment + bytes);
    auto* storage = new (memory) Storage;
    storage->data = memory + kAlignment;
    storage->capacity = bytes;
    storage->home = this;
    stats_.reserved += bytes;
    ++stats_.system_allocations;
    return storage;
  }

  ~CpuAllocator() override = default;

  mutable std::mutex mutex_;
  Regions regions_;
  std::array<Storage*, SizeClass::kCount> free_{};
  Storage* lent_ = nullptr;  // those without users here that other processes still use
  MemoryStats stats_;
  int64_t owners_ = 1;
};

thread_local CpuAllocator* current = nullptr;

}  // namespace

Allocator& cpu_allocator() {
  if (current) return *current;
  static CpuAllocator* const of_process = new CpuAllocator;  // never destroyed: tensors may outlive main
  return *of_process;
}

std::optional<FilePlace> Allocator::place(const Storage&) const { return std::nullopt; }

AllocatorScope::AllocatorScope() : AllocatorScope(nullptr) {}

AllocatorScope::AllocatorScope(std::unique_ptr<MemoryFile> file) : previous_(current) {
  current = new CpuAllocator(std::move(file));
}

AllocatorScope::~AllocatorScope() {
  current->drop_owner();
  current = static_cast<CpuAllocator*>(previous_);
}

}  // namespace phalanx
