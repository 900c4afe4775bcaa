// A caching allocator: blocks return to it when their last tensor goes, and steady-state steps allocate
// nothing.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "phalanx/tensor/device.h"

namespace phalanx {

class Allocator;
class MemoryFile;
struct FilePlace;

/// One block of memory and its count of users. Owned by the tensors that refer to it.
struct Storage {
  std::byte* data = nullptr;  // 64-byte aligned; 256 on a GPU
  size_t capacity = 0;        // bytes
  Device device;              // where data lies
  std::atomic<int64_t> users{0};
  std::atomic<int64_t> lent{0};  // other processes' users: until they are done it is not used again
  Allocator* home = nullptr;     // the allocator it returns to
  Storage* next_free = nullptr;
};

struct MemoryStats {
  size_t in_use = 0;    ///< bytes of blocks that tensors hold
  size_t peak = 0;      ///< the most that in_use has been since reset_peak
  size_t reserved = 0;  ///< bytes taken from the system
  int64_t system_allocations = 0;
};

/// Thread-safe. An allocator lives until its scope has ended and its last block has returned.
class Allocator {
 public:
  /// A block of at least `bytes` with one user. Contents are undefined.
  virtual Storage* allocate(size_t bytes) = 0;
  /// Called when a block's last user goes; on any thread.
  virtual void release(Storage* storage) noexcept = 0;
  virtual MemoryStats stats() const = 0;
  virtual void reset_peak() = 0;
  /// Where a block, header included, lies in a file that other processes can map; none where it does not.
  virtual std::optional<FilePlace> place(const Storage& storage) const;

 protected:
  virtual ~Allocator() = default;
};

/// The CPU allocator of the calling thread: the innermost AllocatorScope's, else the process's.
Allocator& cpu_allocator();
/// Of the calling thread's tensors on `device`: of a GPU its stream's, which must be one of that.
Allocator& allocator_of(Device device);

/// Gives the calling thread (a rank) a CPU allocator of its own, so that memory is counted by rank.
class AllocatorScope {
 public:
  AllocatorScope();
  /// Its memory lies in that file, so that other processes may read and write tensors in place. Null: as
  /// above.
  explicit AllocatorScope(std::unique_ptr<MemoryFile> file);
  ~AllocatorScope();
  AllocatorScope(const AllocatorScope&) = delete;
  AllocatorScope& operator=(const AllocatorScope&) = delete;

 private:
  Allocator* previous_;
};

}  // namespace phalanx
