// Every bit of a checkpoint flipped once; every length of each of its files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "phalanx/base/error.h"
#include "phalanx/base/file.h"
#include "phalanx/train/checkpoint.h"
#include "tests/temporary_directory.h"
#include "tests/train/checkpoint_fixture.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;
using phalanx::testing::load_step;
using phalanx::testing::Loaded;
using phalanx::testing::save_step;
using phalanx::testing::SaveCase;
using phalanx::testing::TemporaryDirectory;
using ::testing::AllOf;
using ::testing::HasSubstr;

class CheckpointExhaustively : public ::testing::TestWithParam<const char*> {
 protected:
  CheckpointExhaustively() {
    save_step(dir_.path(), 380, small_);
    save_step(dir_.path(), 400, small_);
  }

  // The damaged one is refused by name; the run's directory gives one that is whole, unless its files are of
  // their full size: then it says so as well.
  void expect_found(bool same_size) {
    try {
      load_step(dir_ / "step-00000400", small_);
      ADD_FAILURE() << "was loaded";
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), AllOf(HasSubstr(file_.string()), HasSubstr("; step-00000380 is complete: use ")));
    }
    try {
      const Loaded loaded = load_step(dir_.path(), small_);
      EXPECT_EQ(loaded.step, 380);
      EXPECT_EQ(loaded.difference, "");
      EXPECT_THAT(loaded.note, HasSubstr(file_.string()));
    } catch (const Error& e) {
      EXPECT_TRUE(same_size) << e.what();
    }
  }

  const SaveCase small_{.specs = {{"embedding", {3, 5}, DType::f32, {}},
                                  {"experts", {2, 3}, DType::f64, {{Axis::ep, 0}}},
                                  {"none", {0}, DType::i32, {}}}};
  const TemporaryDirectory dir_{TemporaryDirectory::fast_base()};
  const fs::path file_ = dir_ / "step-00000400" / GetParam();
};

TEST_P(CheckpointExhaustively, AnyBitFlipped) {
  const std::string whole = read_text(file_, 1 << 20);
  std::fstream f(file_, std::ios::in | std::ios::out | std::ios::binary);
  for (size_t byte = 0; byte < whole.size() && !HasFailure(); ++byte) {
    for (int bit = 0; bit < 8; ++bit) {
      SCOPED_TRACE(format("byte {} bit {}", byte, bit));
      f.seekp(static_cast<std::streamoff>(byte)).put(static_cast<char>(whole[byte] ^ (1 << bit))).flush();
      expect_found(true);
    }
    f.seekp(static_cast<std::streamoff>(byte)).put(whole[byte]).flush();
  }
  EXPECT_EQ(load_step(dir_.path(), small_).step, 400);
}

TEST_P(CheckpointExhaustively, AnyLength) {
  const std::string whole = read_text(file_, 1 << 20);
  for (uint64_t size = whole.size(); size-- > 0 && !HasFailure();) {
    SCOPED_TRACE(size);
    fs::resize_file(file_, size);
    expect_found(false);
  }
  fs::remove(file_);
  expect_found(false);
}

INSTANTIATE_TEST_SUITE_P(Files, CheckpointExhaustively,
                         ::testing::Values("rank-00000.safetensors", "rank-00001.safetensors",
                                           "manifest.json"));

}  // namespace
}  // namespace phalanx
