// Memory that several processes of one host map: a file without a name in any directory.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace phalanx {

/// A file in memory (memfd; the size of /dev/shm is no limit). It only grows: what is mapped can be read and
/// written even when the process that made it is gone. The memory goes with the last process that has the
/// file open or mapped.
class MemoryFile {
 public:
  /// A new one without bytes, or null where the system makes none or limits the size of files (ulimit -f).
  static std::unique_ptr<MemoryFile> create();
  /// The one that another process has open; null where that process cannot be reached: it runs on another
  /// host, in a container of its own, or as another user.
  static std::unique_ptr<MemoryFile> open(const std::string& address);
  ~MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  /// How other processes of this host find it while this one has it open.
  const std::string& address() const { return address_; }
  /// Appends `bytes` of zeros; gives the offset of the first. Only the process that made it calls this.
  /// Throws std::bad_alloc.
  size_t grow(size_t bytes);
  /// Maps those bytes, both multiples of a page, from the beginning of a huge page on. The caller unmaps
  /// them. Throws std::bad_alloc.
  std::span<std::byte> map(size_t offset, size_t bytes) const;

 private:
  MemoryFile(int fd, std::string address) : fd_(fd), address_(std::move(address)) {}

  int fd_;
  size_t size_ = 0;
  std::string address_;
};

/// Where in a file of memory something lies.
struct FilePlace {
  const MemoryFile* file = nullptr;
  size_t region = 0;        ///< offset in the file of the region in which it lies
  size_t region_bytes = 0;  ///< of that region
  size_t offset = 0;        ///< in the region
};

}  // namespace phalanx
