#include "phalanx/comm/transport/shared_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <memory>
#include <utility>

#include "phalanx/base/system_error.h"
#include "phalanx/base/units.h"

namespace phalanx {
namespace {

constexpr size_t kMostRing = 256 << 10;
constexpr size_t kLeastRing = 16 << 10;
constexpr size_t kAllRings = 48 << 20;  // containers often have 64 MiB of /dev/shm

size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

std::string new_name() {
  uint64_t random = 0;
  if (getrandom(&random, sizeof random, 0) != sizeof random) random = static_cast<uint64_t>(getpid());
  return format("/phalanx-{}-{}", getpid(), random);
}

std::span<std::byte> map(int fd, size_t bytes, const std::string& name) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) throw Error("cannot map the shared memory {}: {}", name, errno_text());
  return {static_cast<std::byte*>(memory), bytes};
}

struct Descriptor {
  int fd;
  explicit Descriptor(int f) : fd(f) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
};

}  // namespace

SharedSegment::Layout::Layout(int ranks) {
  const auto r = static_cast<size_t>(ranks);
  ring_bytes = std::clamp(std::bit_floor(kAllRings / (r * r)), kLeastRing, kMostRing);
  pages = round_up(sizeof(FailureBoard), alignof(RankPage));
  positions = round_up(pages + r * sizeof(RankPage), alignof(RingPositions));
  rings = round_up(positions + r * r * sizeof(RingPositions), 4096);
  total = rings + r * r * ring_bytes;
}

SharedSegment SharedSegment::create(int ranks) {
  const Layout layout(ranks);
  const std::string name = new_name();
  const Descriptor file(shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, S_IRUSR | S_IWUSR));
  if (file.fd < 0) throw Error("cannot create shared memory {}: {}", name, errno_text());
  if (const int e = posix_fallocate(file.fd, 0, static_cast<off_t>(layout.total)); e != 0) {
    shm_unlink(name.c_str());
    throw Error(
        "{} ranks as processes share {} of memory, and /dev/shm has no room for it ({}): enlarge it, or "
        "use parallel.transport=threads",
        ranks, human_bytes(layout.total), errno_text(e));
  }
  SharedSegment segment(name, ranks, map(file.fd, layout.total, name), true);
  std::construct_at(&segment.failures());
  for (int r = 0; r < ranks; ++r) std::construct_at(&segment.page(r));
  auto* positions = reinterpret_cast<RingPositions*>(segment.memory_.data() + layout.positions);
  for (int i = 0; i < ranks * ranks; ++i) std::construct_at(positions + i);
  return segment;
}

SharedSegment SharedSegment::open(const std::string& name, int ranks) {
  const Layout layout(ranks);
  const Descriptor file(shm_open(name.c_str(), O_RDWR, 0));
  struct stat info {};
  if (file.fd < 0 || fstat(file.fd, &info) != 0) {
    throw Error("cannot open the shared memory {} that rank 0 has made: {}; are all ranks on one host?", name,
                errno_text());
  }
  if (static_cast<size_t>(info.st_size) != layout.total) {
    throw Error("the shared memory {} was made by another version, or for other than {} ranks", name, ranks);
  }
  return {name, ranks, map(file.fd, layout.total, name), false};
}

SharedSegment::SharedSegment(SharedSegment&& other) noexcept
    : name_(std::move(other.name_)),
      ranks_(other.ranks_),
      layout_(other.layout_),
      memory_(std::exchange(other.memory_, {})),
      owns_name_(std::exchange(other.owns_name_, false)) {}

SharedSegment::~SharedSegment() {
  remove_name();
  if (!memory_.empty()) munmap(memory_.data(), memory_.size());
}

void SharedSegment::remove_name() noexcept {
  if (std::exchange(owns_name_, false)) shm_unlink(name_.c_str());
}

FailureBoard& SharedSegment::failures() { return *reinterpret_cast<FailureBoard*>(memory_.data()); }

RankPage& SharedSegment::page(int rank) {
  return reinterpret_cast<RankPage*>(memory_.data() + layout_.pages)[rank];
}

ByteRing SharedSegment::ring(int from, int to) {
  const auto index = static_cast<size_t>(from) * static_cast<size_t>(ranks_) + static_cast<size_t>(to);
  auto* positions = reinterpret_cast<RingPositions*>(memory_.data() + layout_.positions);
  return {positions[index], memory_.subspan(layout_.rings + index * layout_.ring_bytes, layout_.ring_bytes)};
}

}  // namespace phalanx
