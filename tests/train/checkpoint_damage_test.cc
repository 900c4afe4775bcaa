// Files that are not what was saved: refused, with the file, the tensor and what can be used instead.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <random>

#include "phalanx/base/error.h"
#include "phalanx/base/file.h"
#include "phalanx/model/safetensors.h"
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
using phalanx::testing::some_tensors;
using phalanx::testing::TemporaryDirectory;
using ::testing::AllOf;
using ::testing::HasSubstr;

void flip(const fs::path& path, uint64_t byte, unsigned bit) {
  std::fstream f(path, std::ios::in | std::ios::out | std::ios::binary);
  char c = 0;
  f.seekg(static_cast<std::streamoff>(byte)).get(c);
  c = static_cast<char>(c ^ (1 << bit));
  f.seekp(static_cast<std::streamoff>(byte)).put(c);
}

// What loading says; "" when it loads.
std::string complaint(const fs::path& path, const SaveCase& c = {}) {
  try {
    load_step(path, c);
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

// Steps 380 and 400 of one run; 400 is the latest.
class CheckpointDamage : public ::testing::Test {
 protected:
  CheckpointDamage() {
    save_step(dir_.path(), 380);
    save_step(dir_.path(), 400);
  }
  fs::path last(const std::string& file) const { return dir_ / "step-00000400" / file; }
  std::string advice() const {
    return "; step-00000380 is complete: use " + (dir_ / "step-00000380").string();
  }
  // Going on from the directory finds 380, and says why not 400.
  void expect_fallback(const std::string& says) {
    const Loaded loaded = load_step(dir_.path());
    EXPECT_EQ(loaded.step, 380);
    EXPECT_EQ(loaded.difference, "");
    EXPECT_THAT(loaded.note, HasSubstr(says));
  }

  std::mt19937 random_{std::random_device{}()};
  TemporaryDirectory dir_{TemporaryDirectory::fast_base()};
};

TEST_F(CheckpointDamage, AFlippedByteOfATensorNamesFileAndTensor) {
  for (const char* file : {"rank-00000.safetensors", "rank-00001.safetensors"}) {
    const SafetensorsFile shard(last(file));
    for (const StoredTensor& t : shard.tensors()) {
      if (t.bytes() == 0) continue;
      const uint64_t byte = shard.data_begin() + t.begin + random_() % t.bytes();
      const unsigned bit = random_() % 8;
      SCOPED_TRACE(format("{} {} byte {} bit {}", file, t.name, byte, bit));
      flip(last(file), byte, bit);
      EXPECT_THAT(complaint(dir_.path()),
                  AllOf(HasSubstr(last(file).string() + ": tensor \"" + t.name + "\" is damaged"),
                        HasSubstr(advice())));
      EXPECT_THAT(complaint(last("")), HasSubstr("tensor \"" + t.name + "\" is damaged"));
      flip(last(file), byte, bit);
    }
  }
  EXPECT_EQ(complaint(dir_.path()), "");
}

TEST_F(CheckpointDamage, AnyFlippedBitOfAShardIsFound) {
  const fs::path file = last("rank-00001.safetensors");
  const uint64_t header = SafetensorsFile(file).data_begin();
  for (int trial = 0; trial < 60; ++trial) {
    const uint64_t byte = random_() % (trial < 40 ? header : fs::file_size(file));
    const unsigned bit = random_() % 8;
    SCOPED_TRACE(format("byte {} bit {}", byte, bit));
    flip(file, byte, bit);
    EXPECT_THAT(complaint(dir_.path()),
                AllOf(HasSubstr(file.string()), HasSubstr("tensor \""), HasSubstr(advice())));
    flip(file, byte, bit);
  }
  EXPECT_EQ(complaint(dir_.path()), "");
}

TEST_F(CheckpointDamage, AnyFlippedBitOfAManifestIsFound) {
  const fs::path file = last("manifest.json");
  for (int trial = 0; trial < 60; ++trial) {
    const uint64_t byte =
        trial < 20 ? fs::file_size(file) - 1 - static_cast<uint64_t>(trial) : random_() % fs::file_size(file);
    const unsigned bit = random_() % 8;
    SCOPED_TRACE(format("byte {} bit {}", byte, bit));
    flip(file, byte, bit);
    EXPECT_THAT(complaint(last("")), AllOf(HasSubstr(file.string()), HasSubstr(advice())));
    expect_fallback("manifest.json");
    flip(file, byte, bit);
  }
  EXPECT_EQ(complaint(dir_.path()), "");
}

// "step-00000400" with a bit flipped may be the name of another checkpoint.
TEST_F(CheckpointDamage, AnyFlippedBitOfThePointerIsFound) {
  save_step(dir_.path(), 0, {.options = {.keep_last = 0}});
  save_step(dir_.path(), 400);
  const fs::path file = dir_ / "latest";
  for (uint64_t byte = 0; byte < fs::file_size(file); ++byte) {
    const unsigned bit = random_() % 8;
    SCOPED_TRACE(format("byte {} bit {}", byte, bit));
    flip(file, byte, bit);
    const Loaded loaded = load_step(dir_.path());
    EXPECT_EQ(loaded.step, 400);
    EXPECT_EQ(loaded.difference, "");
    EXPECT_THAT(loaded.note, HasSubstr("latest: it is damaged"));
    flip(file, byte, bit);
  }
  fs::remove(file);
  EXPECT_THAT(load_step(dir_.path()).note, HasSubstr("latest: No such file"));
}

TEST_F(CheckpointDamage, AMissingShard) {
  fs::remove(last("rank-00001.safetensors"));
  EXPECT_THAT(complaint(last("")),
              AllOf(HasSubstr("rank-00001.safetensors: No such file"), HasSubstr(advice())));
  expect_fallback("rank-00001.safetensors: No such file");
}

TEST_F(CheckpointDamage, AMissingShardNamesATensor) {
  fs::remove(last("rank-00001.safetensors"));
  SaveCase one;
  one.layout = {.tp = 2};
  EXPECT_THAT(complaint(last(""), one), HasSubstr("rank-00001.safetensors"));
}

TEST_F(CheckpointDamage, ATruncatedOrLongerShard) {
  const fs::path file = last("rank-00000.safetensors");
  const uint64_t size = fs::file_size(file);
  for (int trial = 0; trial < 10; ++trial) {
    const uint64_t shorter = trial == 0 ? 0 : trial == 1 ? size - 1 : random_() % size;
    SCOPED_TRACE(shorter);
    const TemporaryDirectory copy;
    fs::copy(file, copy / "whole");
    fs::resize_file(file, shorter);
    EXPECT_THAT(complaint(last("")),
                AllOf(HasSubstr(file.string()), HasSubstr("were saved"), HasSubstr(advice())));
    expect_fallback("rank-00000.safetensors: it has");
    fs::copy(copy / "whole", file, fs::copy_options::overwrite_existing);
  }
  EXPECT_EQ(complaint(last("")), "");
  std::ofstream(file, std::ios::app) << "x";
  EXPECT_THAT(complaint(last("")), HasSubstr("were saved"));
}

TEST_F(CheckpointDamage, ATruncatedOrMissingManifest) {
  const fs::path file = last("manifest.json");
  for (uint64_t size = fs::file_size(file); size > 0; size -= std::min<uint64_t>(size, 1 + random_() % 400)) {
    fs::resize_file(file, size - 1);
    SCOPED_TRACE(size);
    EXPECT_THAT(complaint(last("")), AllOf(HasSubstr(file.string()), HasSubstr(advice())));
  }
  fs::remove(file);
  EXPECT_THAT(complaint(last("")), AllOf(HasSubstr("manifest.json is missing"), HasSubstr(advice())));
  expect_fallback("manifest.json: No such file");
}

// Shards of two checkpoints of one run have equal sizes and headers; only the data tells them apart.
TEST_F(CheckpointDamage, AShardOfAnotherCheckpoint) {
  fs::copy(dir_ / "step-00000380/rank-00001.safetensors", last("rank-00001.safetensors"),
           fs::copy_options::overwrite_existing);
  EXPECT_THAT(complaint(dir_.path()),
              AllOf(HasSubstr("rank-00001.safetensors: tensor \""), HasSubstr("is damaged")));
}

TEST_F(CheckpointDamage, NothingCompleteSaysWhatIsWrongWithEach) {
  fs::resize_file(dir_ / "step-00000380/manifest.json", 10);
  fs::remove(last("rank-00000.safetensors"));
  EXPECT_THAT(complaint(dir_.path()), AllOf(HasSubstr("there is no complete checkpoint"),
                                            HasSubstr("step-00000380/manifest.json: it does not end"),
                                            HasSubstr("step-00000400/rank-00000.safetensors: No such file")));
  EXPECT_THAT(complaint(last("")), HasSubstr("no other checkpoint in "));
}

TEST_F(CheckpointDamage, AdviceIsTheNearestBefore) {
  save_step(dir_.path(), 390, {.options = {.keep_last = 0}});
  save_step(dir_.path(), 410, {.options = {.keep_last = 0}});
  fs::remove(last("manifest.json"));
  EXPECT_THAT(complaint(last("")), HasSubstr("; step-00000390 is complete: use "));
  fs::remove_all(dir_ / "step-00000380");
  fs::remove_all(dir_ / "step-00000390");
  EXPECT_THAT(complaint(last("")), HasSubstr("; step-00000410 is complete: use "));
}

TEST_F(CheckpointDamage, InAnyBlockOfALargePiece) {
  SaveCase large;
  large.specs = {{"big", {2500, 1024}, DType::f32, {}}};  // 10 MB, three blocks
  large.layout = {};
  save_step(dir_.path(), 500, large);
  const fs::path file = dir_ / "step-00000500/rank-00000.safetensors";
  const uint64_t begin = SafetensorsFile(file).data_begin();
  for (const uint64_t at :
       {uint64_t{0}, BlockReader::kBlock - 1, BlockReader::kBlock, uint64_t{2500 * 4096 - 1}}) {
    flip(file, begin + at, 3);
    const uint64_t block = at / BlockReader::kBlock * BlockReader::kBlock;
    const std::string says = format("tensor \"big\" is damaged: the checksum of its bytes {}",
                                    block == 0 ? "0 to 4,194,304 is" : "");
    EXPECT_THAT(complaint(dir_.path(), large), HasSubstr(says));
    flip(file, begin + at, 3);
  }
  EXPECT_EQ(complaint(dir_.path(), large), "");
}

}  // namespace
}  // namespace phalanx
