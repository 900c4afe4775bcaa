#include "phalanx/base/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <random>

#include "phalanx/base/error.h"
#include "phalanx/base/units.h"
#include "tests/temporary_directory.h"

namespace phalanx {
namespace {

using phalanx::testing::TemporaryDirectory;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

std::vector<std::byte> random_bytes(size_t n, std::mt19937& random) {
  std::vector<std::byte> bytes(n);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random() & 0xff);
  return bytes;
}

TEST(File, HoldsWhatWasAppendedInAnyPortions) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const TemporaryDirectory dir;
  const std::vector<std::byte> bytes = random_bytes(5'000'011, random);
  OutputFile out(dir / "a");
  out.reserve(bytes.size());
  for (size_t at = 0; at < bytes.size();) {
    const size_t portion = random() % 3 == 0 ? 0 : random() % (random() % 4 == 0 ? 3'000'000 : 5000);
    const size_t n = std::min(portion, bytes.size() - at);
    out.append(std::span(bytes).subspan(at, n));
    at += n;
  }
  EXPECT_EQ(out.size(), bytes.size());
  out.finish();

  const InputFile in(dir / "a");
  ASSERT_EQ(in.size(), bytes.size());
  std::vector<std::byte> back(bytes.size());
  in.read_at(0, back);
  EXPECT_TRUE(back == bytes);
  std::vector<std::byte> part(1000);
  in.read_at(4321, part);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), bytes.begin() + 4321));
  in.read_at(in.size(), {});
}

TEST(File, ReservedRoomIsNotPartOfTheFile) {
  const TemporaryDirectory dir;
  OutputFile out(dir / "a");
  out.reserve(1 << 20);
  out.append("xy");
  out.finish();
  EXPECT_EQ(read_text(dir / "a", 10), "xy");
}

TEST(File, ErrorsNameTheFileAndTheReason) {
  const TemporaryDirectory dir;
  write_new_file(dir / "a", "12345");
  EXPECT_THAT([&] { OutputFile out(dir / "a"); }, ThrowsMessage<Error>(HasSubstr("a: File exists")));
  EXPECT_THAT([&] { OutputFile out(dir / "no/b"); }, ThrowsMessage<Error>(HasSubstr("no/b: No such file")));
  EXPECT_THAT([&] { InputFile in(dir / "b"); }, ThrowsMessage<Error>(HasSubstr("b: No such file")));
  EXPECT_THAT([&] { InputFile in(dir.path()); }, ThrowsMessage<Error>(HasSubstr("not a regular file")));
  EXPECT_THAT([&] { read_text(dir / "a", 4); }, ThrowsMessage<Error>(HasSubstr("a: it has 5 bytes")));
  std::vector<std::byte> bytes(4);
  EXPECT_THAT([&] { InputFile(dir / "a").read_at(3, bytes); },
              ThrowsMessage<Error>(HasSubstr("bytes 3..7 are wanted, it ends 2 bytes early")));
  EXPECT_THAT([&] { rename_path(dir / "b", dir / "c"); }, ThrowsMessage<Error>(HasSubstr("No such file")));
  EXPECT_THAT([&] { make_directory(dir.path()); }, ThrowsMessage<Error>(HasSubstr("File exists")));
  EXPECT_THAT([&] { sync_directory(dir / "c"); }, ThrowsMessage<Error>(HasSubstr("c: No such file")));
}

// A pipe without a writer would block a reader that opens it plainly.
TEST(File, ReadingAPipeIsAnErrorNotAWait) {
  const TemporaryDirectory dir;
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  EXPECT_THAT([&] { InputFile in(dir / "pipe"); }, ThrowsMessage<Error>(HasSubstr("not a regular file")));
}

TEST(Units, ReadAsPeopleWriteThem) {
  EXPECT_EQ(grouped(0), "0");
  EXPECT_EQ(grouped(999), "999");
  EXPECT_EQ(grouped(1000), "1,000");
  EXPECT_EQ(grouped(8388608), "8,388,608");
  EXPECT_EQ(grouped(UINT64_MAX), "18,446,744,073,709,551,615");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.0 KiB");
  EXPECT_EQ(human_bytes(1024 * 1024 - 1), "1.0 MiB");
  EXPECT_EQ(human_bytes(uint64_t{3} << 29), "1.5 GiB");
  EXPECT_EQ(human_bytes(UINT64_MAX), "16.0 EiB");
}

TEST(File, SaysWhetherAResultCouldBeWritten) {
  const TemporaryDirectory dir;
  check_can_write(dir / "new");
  EXPECT_FALSE(std::filesystem::exists(dir / "new"));
  write_new_file(dir / "there", "kept");
  check_can_write(dir / "there");
  EXPECT_EQ(read_text(dir / "there", 100), "kept");
  EXPECT_THROW(check_can_write(dir.path()), Error);
  EXPECT_THROW(check_can_write(dir / "missing/file"), Error);
  EXPECT_THROW(check_can_write(dir / "there/file"), Error);
}

}  // namespace
}  // namespace phalanx
