#include "phalanx/base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <utility>

#include "phalanx/base/check.h"
#include "phalanx/base/error.h"
#include "phalanx/base/system_error.h"

namespace phalanx {
namespace {

constexpr size_t kGather = size_t{1} << 20;       // small writes are gathered to this many bytes
constexpr size_t kLargestCall = size_t{1} << 30;  // of one read or write: the system's own limit is 2 GiB

void close_quietly(int fd) noexcept {
  if (fd >= 0) ::close(fd);
}

int open_retrying(const std::filesystem::path& path, int flags) {
  int fd = -1;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

}  // namespace

InputFile::InputFile(std::filesystem::path path) : path_(std::move(path)) {
  fd_ = open_retrying(path_, O_RDONLY | O_NONBLOCK);  // a pipe is refused below, not waited for
  if (fd_ < 0) throw Error("cannot read {}: {}", path_.string(), errno_text());
  struct stat info {};
  const bool known = ::fstat(fd_, &info) == 0;
  if (!known || !S_ISREG(info.st_mode)) {
    close_quietly(std::exchange(fd_, -1));
    throw Error("cannot read {}: not a regular file", path_.string());
  }
  size_ = static_cast<uint64_t>(info.st_size);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

InputFile::~InputFile() { close_quietly(fd_); }

void InputFile::read_at(uint64_t offset, std::span<std::byte> into) const {
  const uint64_t end = offset + into.size();
  while (!into.empty()) {
    const ssize_t n =
        ::pread(fd_, into.data(), std::min(into.size(), kLargestCall), static_cast<off_t>(end - into.size()));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error("cannot read {}: {}", path_.string(), errno_text());
    if (n == 0) {
      throw Error("cannot read {}: bytes {}..{} are wanted, it ends {} bytes early", path_.string(), offset,
                  end, into.size());
    }
    into = into.subspan(static_cast<size_t>(n));
  }
}

OutputFile::OutputFile(std::filesystem::path path) : path_(std::move(path)) {
  fd_ = open_retrying(path_, O_WRONLY | O_CREAT | O_EXCL);
  if (fd_ < 0) throw Error("cannot create {}: {}", path_.string(), errno_text());
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      size_(other.size_),
      written_(other.written_),
      gathered_(std::move(other.gathered_)) {}

OutputFile::~OutputFile() { close_quietly(fd_); }

void OutputFile::reserve(uint64_t bytes) {
  if (bytes == 0) return;
  int error = 0;
  do {
    error = ::fallocate(fd_, FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error == ENOSPC || error == EFBIG || error == EDQUOT) {
    throw Error("cannot write {}: no room for {} bytes: {}", path_.string(), bytes, errno_text(error));
  }
}

void OutputFile::append(std::span<const std::byte> bytes) {
  PHX_CHECK(fd_ >= 0, "{} is finished", path_.string());
  size_ += bytes.size();
  if (gathered_.size() + bytes.size() < kGather) {
    gathered_.insert(gathered_.end(), bytes.begin(), bytes.end());
    return;
  }
  flush();
  write_through(bytes);
}

void OutputFile::finish() {
  PHX_CHECK(fd_ >= 0, "{} is finished", path_.string());
  flush();
  int error = 0;
  do {
    error = ::fsync(fd_) == 0 ? 0 : errno;
  } while (error == EINTR);
  // A failed close may be the first word of an error on a network file system.
  if (::close(std::exchange(fd_, -1)) != 0 && error == 0 && errno != EINTR) error = errno;
  if (error != 0) throw Error("cannot write {}: {}", path_.string(), errno_text(error));
}

void OutputFile::flush() {
  write_through(gathered_);
  gathered_.clear();
}

void OutputFile::write_through(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), std::min(bytes.size(), kLargestCall));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      throw Error("cannot write {}: {} (after {} bytes)", path_.string(), errno_text(), written_);
    }
    written_ += static_cast<uint64_t>(n);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

std::string read_text(const std::filesystem::path& path, uint64_t limit) {
  const InputFile file(path);
  if (file.size() > limit) {
    throw Error("cannot read {}: it has {} bytes, at most {} make sense", path.string(), file.size(), limit);
  }
  std::string text(file.size(), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)));
  return text;
}

void write_new_file(const std::filesystem::path& path, std::string_view text) {
  OutputFile file(path);
  file.append(text);
  file.finish();
}

void write_over(const std::filesystem::path& path, std::string_view text) {
  const auto refuse = [&] { throw Error("cannot write {}: {}", path.string(), errno_text()); };
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "wb"), std::fclose);
  if (file == nullptr) refuse();
  const bool written =
      std::fwrite(text.data(), 1, text.size(), file.get()) == text.size() && std::fflush(file.get()) == 0;
  if (!written) refuse();
  if (std::fclose(file.release()) != 0) refuse();
}

void check_can_write(const std::filesystem::path& path) {
  const auto refuse = [&](int error) {
    throw Error("cannot write {}: {}", path.string(), errno_text(error));
  };
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0) {
    if (S_ISDIR(info.st_mode)) refuse(EISDIR);
    if (::access(path.c_str(), W_OK) != 0) refuse(errno);
    return;
  }
  const int fd = open_retrying(path, O_WRONLY | O_CREAT | O_EXCL);
  if (fd < 0 && errno != EEXIST) refuse(errno);  // else another process looks at the same time
  close_quietly(fd);
  if (fd >= 0) ::unlink(path.c_str());
}

void make_directory(const std::filesystem::path& path) {
  if (::mkdir(path.c_str(), 0777) != 0) {
    throw Error("cannot create directory {}: {}", path.string(), errno_text());
  }
}

void rename_path(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    throw Error("cannot rename {} to {}: {}", from.string(), to.string(), errno_text());
  }
}

void sync_directory(const std::filesystem::path& path) {
  const int fd = open_retrying(path, O_RDONLY | O_DIRECTORY);
  if (fd < 0) throw Error("cannot open directory {}: {}", path.string(), errno_text());
  const int error = ::fsync(fd) == 0 ? 0 : errno;
  close_quietly(fd);
  // Some network file systems have no such call and write names at once.
  if (error != 0 && error != EINVAL)
    throw Error("cannot sync directory {}: {}", path.string(), errno_text(error));
}

}  // namespace phalanx
