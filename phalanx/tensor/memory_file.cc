#include "phalanx/tensor/memory_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <new>
#include <utility>

#include "phalanx/base/text.h"
#include "phalanx/tensor/address_space.h"

namespace phalanx {
namespace {

// MFD_NOEXEC_SEAL, without which Linux from 6.3 on may be set to refuse; older headers do not have it, and
// older systems do not know it.
constexpr unsigned kNoExecSeal = 8;

int create_file(const std::string& name) {
  const int fd = memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | kNoExecSeal);
  return fd >= 0 ? fd : memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING);
}

// What a symbolic link of /proc says, "" if there is none.
std::string link_text(const std::string& path) {
  std::array<char, 256> text{};
  const ssize_t n = readlink(path.c_str(), text.data(), text.size());
  return n > 0 ? std::string(text.data(), static_cast<size_t>(n)) : "";
}

// A name that no other file on any host has: whoever reads it where it was told to look has the right file.
std::string new_name() {
  std::array<uint64_t, 2> random{};
  if (getrandom(random.data(), sizeof random, 0) != sizeof random) return "";
  return format("phalanx-{}-{}", random[0], random[1]);
}

// A file that grows past such a limit ends the process.
bool sizes_are_limited() {
  rlimit limit{};
  return getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY;
}

}  // namespace

std::unique_ptr<MemoryFile> MemoryFile::create() {
  const std::string name = new_name();
  if (name.empty() || sizes_are_limited()) return nullptr;
  const int fd = create_file(name);
  if (fd < 0) return nullptr;
  fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
  // lint-allow(raw-memory): the constructor is private
  return std::unique_ptr<MemoryFile>(new MemoryFile(fd, format("{}/fd/{} {}", getpid(), fd, name)));
}

std::unique_ptr<MemoryFile> MemoryFile::open(const std::string& address) {
  const size_t space = address.find(' ');
  if (space == std::string::npos) return nullptr;
  const std::string path = "/proc/" + address.substr(0, space);
  // The name before the file: to open what another host's number happens to mean here may do something.
  if (link_text(path) != format("/memfd:{} (deleted)", address.substr(space + 1))) return nullptr;
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return nullptr;
  // lint-allow(raw-memory): the constructor is private
  return std::unique_ptr<MemoryFile>(new MemoryFile(fd, address));
}

MemoryFile::~MemoryFile() { close(fd_); }

size_t MemoryFile::grow(size_t bytes) {
  const size_t size = size_ + bytes;
  if (ftruncate(fd_, static_cast<off_t>(size)) != 0) throw std::bad_alloc();
  return std::exchange(size_, size);
}

std::span<std::byte> MemoryFile::map(size_t offset, size_t bytes) const {
  const std::span<std::byte> space = reserve_addresses(bytes);
  void* const at = mmap(space.data(), bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd_,
                        static_cast<off_t>(offset));
  if (at != MAP_FAILED) return space;
  munmap(space.data(), space.size());
  throw std::bad_alloc();
}

}  // namespace phalanx
