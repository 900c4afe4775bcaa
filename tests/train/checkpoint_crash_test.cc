// Saves that are killed, run out of room or fail in any call to the system: what was complete stays so.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <mutex>
#include <random>
#include <thread>

#include "phalanx/base/error.h"
#include "phalanx/base/file.h"
#include "phalanx/train/checkpoint.h"
#include "tests/temporary_directory.h"
#include "tests/train/checkpoint_fixture.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;
using phalanx::testing::in_child;
using phalanx::testing::load_step;
using phalanx::testing::Loaded;
using phalanx::testing::names_in;
using phalanx::testing::save_step;
using phalanx::testing::SaveCase;
using phalanx::testing::some_tensors;
using phalanx::testing::TemporaryDirectory;
using ::testing::AllOf;
using ::testing::HasSubstr;

// Of the calls to the system that change files: which one, counted from the arming, goes wrong, and how.
enum class Wrong { nothing, killed, fails };
std::atomic<Wrong> wrong{Wrong::nothing};
std::atomic<int> calls_left{0};

// True: this call has to fail with EIO or ENOSPC. `half` is done first by one that is killed in the midst.
template <class Half>
bool goes_wrong(int error, Half half) {
  if (wrong.load() == Wrong::nothing || calls_left.fetch_sub(1) != 1) return false;
  if (wrong.load() == Wrong::killed) {
    half();
    ::kill(::getpid(), SIGKILL);
    for (;;) ::pause();
  }
  errno = error;
  return true;
}

bool goes_wrong(int error) {
  return goes_wrong(error, [] {});
}

// The calls made while it is on, in their order: "fsync /dir/file".
std::atomic<bool> recording{false};
std::mutex calls_mutex;
std::vector<std::string> calls;

void record(const char* call, const std::string& what) {
  const std::lock_guard lock(calls_mutex);
  calls.push_back(format("{} {}", call, what));
}

void record(const char* call, int fd) {
  if (!recording) return;
  std::array<char, 4096> path{};
  const ssize_t n = ::readlink(format("/proc/self/fd/{}", fd).c_str(), path.data(), path.size() - 1);
  record(call, std::string(path.data(), n > 0 ? static_cast<size_t>(n) : 0));
}

}  // namespace
}  // namespace phalanx

// These take the place of the C library's in the whole program.
extern "C" {

ssize_t write(int fd, const void* bytes, size_t n) {
  phalanx::record("write", fd);
  if (phalanx::goes_wrong(ENOSPC, [&] { ::syscall(SYS_write, fd, bytes, n / 2); })) return -1;
  return ::syscall(SYS_write, fd, bytes, n);
}

int fsync(int fd) {
  phalanx::record("fsync", fd);
  if (phalanx::goes_wrong(EIO)) return -1;
  return static_cast<int>(::syscall(SYS_fsync, fd));
}

int rename(const char* from, const char* to) noexcept {
  if (phalanx::recording) phalanx::record("rename", std::string(from) + " to " + to);
  if (phalanx::goes_wrong(EIO)) return -1;
  return static_cast<int>(::syscall(SYS_rename, from, to));
}

int mkdir(const char* path, mode_t mode) noexcept {
  if (phalanx::goes_wrong(ENOSPC)) return -1;
  return static_cast<int>(::syscall(SYS_mkdir, path, mode));
}

int fallocate(int fd, int mode, off_t offset, off_t size) {
  if (phalanx::goes_wrong(ENOSPC)) return -1;
  return static_cast<int>(::syscall(SYS_fallocate, fd, mode, offset, size));
}

int unlinkat(int dir, const char* path, int flags) noexcept {
  if (phalanx::recording) phalanx::record("unlinkat", path);
  if (phalanx::goes_wrong(EIO)) return -1;
  return static_cast<int>(::syscall(SYS_unlinkat, dir, path, flags));
}

}  // extern "C"

namespace phalanx {
namespace {

void arm(Wrong how, int call) {
  calls_left = call;
  wrong = how;
}
void disarm() { wrong = Wrong::nothing; }
bool went_wrong() { return calls_left.load() <= 0; }

// The latest checkpoint is whole and not older than `at_least`.
int64_t expect_sound(const fs::path& dir, int64_t at_least) {
  const Loaded loaded = load_step(dir);
  EXPECT_EQ(loaded.difference, "");
  EXPECT_GE(loaded.step, at_least);
  return loaded.step;
}

TEST(CheckpointCrash, KilledAtRandomMomentsOfSaving) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const TemporaryDirectory dir(TemporaryDirectory::fast_base());
  const SaveCase c{.specs = some_tensors(40)};
  int64_t step = 0;
  save_step(dir.path(), step, c);
  for (int round = 0; round < 40; ++round) {
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe(ends.data()), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int64_t next = step + 1;; ++next) {
        save_step(dir.path(), next, c);
        if (::write(ends[1], &next, sizeof next) != sizeof next) ::_exit(1);
      }
    }
    ::close(ends[1]);
    int64_t reported = step;
    if (random() % 2 == 0) {  // let it end one first
      ASSERT_EQ(::read(ends[0], &reported, sizeof reported), static_cast<ssize_t>(sizeof reported));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20'000));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    for (int64_t last = 0; ::read(ends[0], &last, sizeof last) == sizeof last;) reported = last;
    ::close(ends[0]);
    const Loaded loaded = load_step(dir.path(), c);
    EXPECT_EQ(loaded.difference, "");
    EXPECT_GE(loaded.step, reported);
    EXPECT_LE(loaded.step, reported + 1);
    step = loaded.step;
  }
}

// Each call to the system that a save makes goes wrong once. There are steps 2 (to prune) and 3 (the latest),
// and a save that never ended; 4 comes after them, 3 and 2 replace what is there.
class CheckpointEveryCall : public ::testing::TestWithParam<int64_t> {
 protected:
  CheckpointEveryCall() {
    save_step(start_.path(), 2);
    save_step(start_.path(), 3);
    fs::create_directories(start_ / ".writing-step-00000009/rest");
  }
  void begin(const fs::path& dir) const { fs::copy(start_.path(), dir, fs::copy_options::recursive); }

  const int64_t step_ = GetParam();
  const TemporaryDirectory start_{TemporaryDirectory::fast_base()};
};

TEST_P(CheckpointEveryCall, Killed) {
  int kills = 0;
  for (int call = 1; call < 1000; ++call) {
    SCOPED_TRACE(call);
    const TemporaryDirectory dir(TemporaryDirectory::fast_base());
    begin(dir.path());
    const std::string end = in_child([&] {
      arm(Wrong::killed, call);
      save_step(dir.path(), step_);
      disarm();
      return std::string(went_wrong() ? "survived" : "done");
    });
    const int64_t found = expect_sound(dir.path(), std::min<int64_t>(3, step_));
    EXPECT_TRUE(found == 3 || found == step_) << found;
    if (end == "done") break;
    ASSERT_EQ(end, "signal 9");
    ++kills;
    EXPECT_EQ(save_step(dir.path(), step_), dir / checkpoint_name(step_));  // goes on as if nothing had been
    EXPECT_EQ(expect_sound(dir.path(), step_), step_);
    for (const std::string& name : names_in(dir.path())) EXPECT_NE(name[0], '.') << name;
  }
  EXPECT_GT(kills, 15);
}

TEST_P(CheckpointEveryCall, Fails) {
  int failures = 0;
  for (int call = 1; call < 1000; ++call) {
    SCOPED_TRACE(call);
    const TemporaryDirectory dir(TemporaryDirectory::fast_base());
    begin(dir.path());
    std::string said;
    arm(Wrong::fails, call);
    try {
      save_step(dir.path(), step_);
    } catch (const Error& e) {
      said = e.what();
    }
    disarm();
    if (!went_wrong()) break;
    ++failures;
    const int64_t found = expect_sound(dir.path(), std::min<int64_t>(3, step_));
    if (said.empty()) {  // a hint or a removal failed: nothing that the checkpoint needs
      EXPECT_EQ(found, step_);
    } else {
      EXPECT_TRUE(found == 3 || found == step_) << found;
      EXPECT_THAT(said, AllOf(HasSubstr(format("{} was not saved: ", checkpoint_name(step_))),
                              HasSubstr("cannot "), HasSubstr("is complete: use ")));
    }
    save_step(dir.path(), step_);
    EXPECT_EQ(expect_sound(dir.path(), step_), step_);
  }
  EXPECT_GT(failures, 15);
}

INSTANTIATE_TEST_SUITE_P(Steps, CheckpointEveryCall, ::testing::Values(4, 3, 2));

// What a machine that loses power asks for: bytes before names, names before what points at them, and nothing
// removed before that.
TEST(CheckpointCrash, EverythingIsOnTheDiskBeforeWhatDependsOnIt) {
  const TemporaryDirectory dir;
  for (int64_t step = 1; step <= 2; ++step) save_step(dir.path(), step);
  calls.clear();
  recording = true;
  save_step(dir.path(), 3);
  recording = false;

  const std::string base = dir.path().string();
  const std::string writing = base + "/.writing-step-00000003";
  const auto first = [&](const std::string& call) {
    const auto found = std::ranges::find(calls, call);
    EXPECT_NE(found, calls.end()) << call;
    return found - calls.begin();
  };
  const auto last = [&](const std::string& call) {
    const auto found = std::find(calls.rbegin(), calls.rend(), call);
    EXPECT_NE(found, calls.rend()) << call;
    return calls.rend() - found - 1;
  };
  const auto named = first("rename " + writing + " to " + base + "/step-00000003");
  const auto pointed = first("rename " + base + "/.writing-latest to " + base + "/latest");
  for (const char* file : {"/rank-00000.safetensors", "/rank-00001.safetensors", "/manifest.json"}) {
    EXPECT_LT(last("write " + writing + file), first("fsync " + writing + file)) << file;
    EXPECT_LT(last("fsync " + writing + file), last("fsync " + writing)) << file;
  }
  EXPECT_LT(last("fsync " + writing), named);
  EXPECT_LT(last("write " + base + "/.writing-latest"), last("fsync " + base + "/.writing-latest"));
  EXPECT_LT(last("fsync " + base + "/.writing-latest"), pointed);
  EXPECT_LT(named, first("fsync " + base));
  EXPECT_LT(first("fsync " + base), pointed);
  EXPECT_LT(pointed, last("fsync " + base));
  const auto pruned = first("rename " + base + "/step-00000001 to " + base + "/.removing-step-00000001");
  EXPECT_LT(last("fsync " + base), pruned);
  const auto removed = std::ranges::find_if(calls, [](const auto& c) { return c.starts_with("unlinkat"); });
  EXPECT_LT(pruned, removed - calls.begin());
}

// Fills a disk of 1 MiB with `used` bytes of something else, saves, and tells what went wrong with the
// checkpoints.
std::string save_beside(const fs::path& disk, uint64_t used, int64_t step, int& failures) {
  write_new_file(disk / "ballast", std::string(used, 'b'));
  std::string said;
  try {
    save_step(disk / "run", step);
  } catch (const Error& e) {
    said = e.what();
    ++failures;
  }
  fs::remove(disk / "ballast");
  const Loaded loaded = load_step(disk / "run");
  if (!loaded.difference.empty()) return format("{} differs", loaded.difference);
  if (said.empty()) return loaded.step == step ? "" : format("step {} after saving {}", loaded.step, step);
  const bool clear = said.find("was not saved: rank ") != std::string::npos &&
                     said.find("No space left on device") != std::string::npos &&
                     said.find("is complete: use ") != std::string::npos;
  return clear ? "" : said;
}

std::string on_a_small_disk(const fs::path& disk) {
  if (::unshare(CLONE_NEWNS) != 0 && ::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0)
    return "skip: no mount namespace";
  if (::mount("", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
    return "skip: mounts cannot be made private";
  if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=1m") != 0) return "skip: tmpfs cannot be mounted";
  save_step(disk / "run", 1);
  int failures = 0;
  int64_t step = 2;
  for (uint64_t used = 1 << 20; used > 0; used -= 4096) {
    const fs::space_info room = fs::space(disk);
    if (used > room.available) continue;
    if (room.available - used > 100'000) break;
    const std::string wrong_with = save_beside(disk, used, step++, failures);
    if (!wrong_with.empty()) return format("{} bytes used: {}", used, wrong_with);
  }
  return format("{} saves, {} failed", step - 2, failures);
}

TEST(CheckpointCrash, AFullDiskKeepsTheLastComplete) {
  const TemporaryDirectory dir;
  const std::string said = in_child([&] { return on_a_small_disk(dir.path()); });
  if (said.starts_with("skip")) GTEST_SKIP() << said;
  int saves = 0;
  int failures = 0;
  ASSERT_EQ(std::sscanf(said.c_str(), "%d saves, %d failed", &saves, &failures), 2) << said;
  EXPECT_GT(failures, 5);
  EXPECT_GT(saves, failures + 2);
}

TEST(CheckpointCrash, AFileSizeLimitKeepsTheLastComplete) {
  const TemporaryDirectory dir;
  save_step(dir.path(), 1);
  const std::string said = in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{.rlim_cur = 2000, .rlim_max = 2000};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return std::string("no limit");
    save_step(dir.path(), 2);
    return std::string("saved");
  });
  EXPECT_THAT(said,
              AllOf(HasSubstr("exception: checkpoint "), HasSubstr("was not saved: rank 0: cannot write"),
                    HasSubstr("File too large"), HasSubstr("step-00000001 is complete: use ")));
  EXPECT_EQ(expect_sound(dir.path(), 1), 1);
}

TEST(CheckpointCrash, AnUnwritableDirectoryIsAnError) {
  const TemporaryDirectory dir;
  fs::permissions(dir.path(), fs::perms(0755));
  save_step(dir / "run", 1);
  const auto save_as_nobody = [&](const fs::path& to) {
    return in_child([&] {
      if (::getuid() == 0 && ::setuid(65534) != 0) return std::string("still root");
      save_step(to, 2);
      return std::string("saved");
    });
  };
  if (::getuid() != 0) fs::permissions(dir / "run", fs::perms(0555));
  EXPECT_THAT(save_as_nobody(dir / "run"),
              AllOf(HasSubstr("was not saved: rank 0: cannot create directory "),
                    HasSubstr("Permission denied"), HasSubstr("step-00000001 is complete: use ")));
  write_new_file(dir / "file", "");
  EXPECT_THAT(save_as_nobody(dir / "file/run"),
              AllOf(HasSubstr("cannot create directory "), HasSubstr("Not a directory")));
  if (::getuid() != 0) fs::permissions(dir / "run", fs::perms(0755));
}

}  // namespace
}  // namespace phalanx
