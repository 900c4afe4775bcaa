// The memory that the processes of one host share: failure board, pages, and a ring for each pair of ranks.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "phalanx/comm/failure.h"
#include "phalanx/comm/rank_page.h"
#include "phalanx/comm/transport/byte_ring.h"

namespace phalanx {

/// A POSIX shared-memory object, mapped. One rank creates it, the others open it by its name; once all have
/// it, the name is removed, and the memory goes with the last process.
class SharedSegment {
 public:
  /// A new one. Error: /dev/shm has no room.
  static SharedSegment create(int ranks);
  /// That of another process. Error: it is gone, or was made for another number of ranks.
  static SharedSegment open(const std::string& name, int ranks);

  SharedSegment(SharedSegment&& other) noexcept;
  SharedSegment& operator=(SharedSegment&&) = delete;
  ~SharedSegment();

  const std::string& name() const { return name_; }
  /// Removes the name; the memory stays mapped.
  void remove_name() noexcept;

  FailureBoard& failures();
  RankPage& page(int rank);
  /// The stream of bytes from one rank to another.
  ByteRing ring(int from, int to);

 private:
  // Where everything lies: the one place that says so.
  struct Layout {
    explicit Layout(int ranks);
    size_t pages;
    size_t positions;
    size_t rings;
    size_t ring_bytes;
    size_t total;
  };

  SharedSegment(std::string name, int ranks, std::span<std::byte> memory, bool owns_name)
      : name_(std::move(name)), ranks_(ranks), layout_(ranks), memory_(memory), owns_name_(owns_name) {}

  std::string name_;
  int ranks_;
  Layout layout_;
  std::span<std::byte> memory_;
  bool owns_name_;
};

}  // namespace phalanx
