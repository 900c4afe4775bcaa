#include "phalanx/tensor/memory_file.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <new>

#include "phalanx/base/text.h"

namespace phalanx {
namespace {

constexpr size_t kBytes = size_t{2} << 20;

TEST(MemoryFile, ReachesAnotherProcessAndOutlivesIt) {
  int to_parent[2];
  ASSERT_EQ(pipe(to_parent), 0);
  int to_child[2];
  ASSERT_EQ(pipe(to_child), 0);
  const pid_t child = fork();
  if (child == 0) {
    const auto file = MemoryFile::create();
    const std::span<std::byte> memory = file->map(file->grow(kBytes), kBytes);
    memory[5] = std::byte{7};
    char wait = 0;
    (void)!write(to_parent[1], file->address().c_str(), file->address().size() + 1);
    (void)!read(to_child[0], &wait, 1);
    _exit(0);
  }
  char address[256] = {};
  ASSERT_GT(read(to_parent[0], address, sizeof address - 1), 0);
  const auto file = MemoryFile::open(address);
  ASSERT_TRUE(file);
  EXPECT_EQ(file->address(), address);
  const std::span<std::byte> memory = file->map(0, kBytes);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_EQ(memory[5], std::byte{7});
  memory[kBytes - 1] = std::byte{8};
  EXPECT_EQ(file->map(0, kBytes)[kBytes - 1], std::byte{8});
  EXPECT_FALSE(MemoryFile::open(address));  // who made it is gone
  for (const int fd : {to_parent[0], to_parent[1], to_child[0], to_child[1]}) close(fd);
}

TEST(MemoryFile, IsFoundByItsNameAlone) {
  const auto file = MemoryFile::create();
  const auto other = MemoryFile::create();
  const auto part = [](const std::string& address, bool name) {
    const size_t space = address.find(' ');
    return name ? address.substr(space) : address.substr(0, space);
  };
  EXPECT_TRUE(MemoryFile::open(file->address()));
  EXPECT_FALSE(MemoryFile::open(part(file->address(), false) + part(other->address(), true)));
  for (const char* address : {"", "1", "1/fd/0 phalanx", "self/fd/0 phalanx-1-2", "no such file", " "}) {
    EXPECT_FALSE(MemoryFile::open(address)) << address;
  }
}

TEST(MemoryFile, GrowsByZerosAndNeverShrinks) {
  const auto file = MemoryFile::create();
  EXPECT_EQ(file->grow(kBytes), 0u);
  EXPECT_EQ(file->grow(2 * kBytes), kBytes);
  EXPECT_EQ(file->grow(kBytes), 3 * kBytes);
  const std::span<std::byte> memory = file->map(kBytes, 2 * kBytes);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.data()) % kBytes, 0u);
  EXPECT_EQ(memory[2 * kBytes - 1], std::byte{0});
  memory[0] = std::byte{1};
  const std::string path = "/proc/" + file->address().substr(0, file->address().find(' '));
  EXPECT_NE(truncate(path.c_str(), static_cast<off_t>(kBytes)), 0);  // a seal forbids it
  EXPECT_EQ(memory[0], std::byte{1});
  EXPECT_THROW((void)file->map(0, size_t{1} << 60), std::bad_alloc);
  munmap(memory.data(), memory.size());
}

}  // namespace
}  // namespace phalanx
