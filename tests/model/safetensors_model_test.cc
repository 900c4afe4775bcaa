#include "phalanx/model/safetensors_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "phalanx/base/error.h"
#include "tests/model/safetensors_bytes.h"
#include "tests/temporary_directory.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;
using phalanx::testing::file_bytes;
using phalanx::testing::TemporaryDirectory;
using phalanx::testing::write_bytes;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

class SafetensorsModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    write_bytes(dir_ / "1.safetensors",
                file_bytes(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                           R"("spare":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                           "abs"));
    write_bytes(dir_ / "2.safetensors",
                file_bytes(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "b"));
  }
  void write_index(const std::string& map) {
    write_bytes(dir_ / "model.safetensors.index.json",
                R"({"metadata":{"total_size":3},"weight_map":)" + map + "}");
  }
  void expect_refused(const std::string& map, const std::string& says) {
    write_index(map);
    EXPECT_THAT([&] { SafetensorsModel::open(dir_.path()); }, ThrowsMessage<Error>(HasSubstr(says)));
  }
  TemporaryDirectory dir_;
};

TEST_F(SafetensorsModelTest, ReadsShardsThroughTheirIndex) {
  write_index(R"({"a":"1.safetensors","b":"2.safetensors"})");
  for (const fs::path& path : {dir_.path(), dir_ / "model.safetensors.index.json"}) {
    const SafetensorsModel model = SafetensorsModel::open(path);
    EXPECT_EQ(model.files().size(), 2u);
    ASSERT_EQ(model.tensors().size(), 2u);
    const Tensor a = Tensor::empty({2}, DType::u8);
    const SafetensorsModel::Entry entry = model.at("a");
    entry.file->load(*entry.tensor, whole({2}), a);
    EXPECT_EQ(a.data<uint8_t>()[1], 'b');
    EXPECT_THAT([&] { model.at("c"); }, ThrowsMessage<Error>(HasSubstr("tensor \"c\" is missing")));
  }
}

TEST_F(SafetensorsModelTest, ReadsOneFile) {
  EXPECT_EQ(SafetensorsModel::open(dir_ / "1.safetensors").tensors().size(), 2u);
  fs::copy(dir_ / "2.safetensors", dir_ / "model.safetensors");
  EXPECT_EQ(SafetensorsModel::open(dir_.path()).tensors().size(), 1u);
}

TEST_F(SafetensorsModelTest, RefusesABadIndex) {
  EXPECT_THAT([&] { SafetensorsModel::open(dir_.path()); }, ThrowsMessage<Error>(HasSubstr("neither")));
  expect_refused(R"({"a":"2.safetensors"})", "tensor \"a\" should be in \"2.safetensors\"");
  expect_refused(R"({"a":"3.safetensors"})", "3.safetensors: No such file");
  expect_refused(R"({"a":"../1.safetensors"})", "\"../1.safetensors\": a file beside the index");
  expect_refused(R"({"a":"1.safetensors","a":"2.safetensors"})", "\"a\" stands there twice");
  expect_refused(R"({"a":1})", "text is expected");
  expect_refused(R"([])", "object is expected");
  write_bytes(dir_ / "model.safetensors.index.json", "{}");
  EXPECT_THAT([&] { SafetensorsModel::open(dir_.path()); },
              ThrowsMessage<Error>(HasSubstr("\"weight_map\"")));
}

}  // namespace
}  // namespace phalanx
