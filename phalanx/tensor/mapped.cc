#include "phalanx/tensor/mapped.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <memory>

#include "phalanx/base/error.h"
#include "phalanx/base/system_error.h"
#include "phalanx/base/units.h"

namespace phalanx {
namespace {

// A file without a name, open for reading and writing.
int open_nameless(const std::filesystem::path& directory) {
  const int fd = open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return fd;
  std::string name = (directory / "phalanx-XXXXXX").string();
  const int named = mkostemp(name.data(), O_CLOEXEC);
  if (named >= 0) unlink(name.c_str());
  return named;
}

// One file, and the one block of memory in it.
class MappedFile final : public Allocator {
 public:
  explicit MappedFile(std::filesystem::path directory) : directory_(std::move(directory)) {}

  Storage* allocate(size_t bytes) override {
    const int fd = open_nameless(directory_);
    if (fd < 0) throw Error("{}: no file can be made there: {}", directory_.string(), errno_text());
    const int full = posix_fallocate(fd, 0, static_cast<off_t>(bytes));
    void* const at = full ? MAP_FAILED : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    const int error = full ? full : errno;
    close(fd);
    if (at == MAP_FAILED) {
      throw Error("{}: no file of {} can be made there: {}", directory_.string(), human_bytes(bytes),
                  errno_text(error));
    }
    storage_.data = static_cast<std::byte*>(at);
    storage_.capacity = bytes;
    storage_.home = this;
    storage_.users.store(1, std::memory_order_relaxed);
    return &storage_;
  }

  void release(Storage* storage) noexcept override {
    const std::unique_ptr<MappedFile> self(this);
    munmap(storage->data, storage->capacity);
  }
  MemoryStats stats() const override { return {}; }
  void reset_peak() override {}

 private:
  std::filesystem::path directory_;
  Storage storage_;
};

}  // namespace

Tensor mapped_zeros(const Shape& shape, DType dtype, const std::filesystem::path& directory) {
  if (shape.numel() == 0) return Tensor::zeros(shape, dtype);
  auto file = std::make_unique<MappedFile>(directory);
  Tensor zeros = Tensor::from(*file, shape, dtype);
  (void)file.release();  // it goes with its block
  return zeros;
}

}  // namespace phalanx
