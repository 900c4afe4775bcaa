#include "phalanx/train/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "phalanx/base/error.h"
#include "phalanx/model/safetensors.h"
#include "phalanx/train/checkpoint.h"
#include "tests/temporary_directory.h"
#include "tests/train/checkpoint_fixture.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using phalanx::testing::save_step;
using phalanx::testing::some_tensors;
using phalanx::testing::TemporaryDirectory;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;
using ::testing::Not;
using ::testing::ThrowsMessage;

void flip(const fs::path& path, uint64_t byte) {
  std::fstream f(path, std::ios::in | std::ios::out | std::ios::binary);
  char c = 0;
  f.seekg(static_cast<std::streamoff>(byte)).get(c);
  f.seekp(static_cast<std::streamoff>(byte)).put(static_cast<char>(c ^ 4));
}

void write_file(const fs::path& path, const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
  std::ofstream(path, std::ios::binary) << bytes + header + data;
}

json json_of(const fs::path& path, bool verify = false) {
  return json::parse(inspect(path, {.json = true, .verify = verify}).text);
}

std::string line_with(const std::string& text, const std::string& word) {
  const size_t at = text.find(word);
  if (at == std::string::npos) return "";
  const size_t begin = text.rfind('\n', at) + 1;
  return text.substr(begin, text.find('\n', at) - begin);
}

TEST(Inspect, ACheckpointAsATable) {
  const TemporaryDirectory dir;
  const fs::path path = save_step(dir.path(), 400);
  const Inspection seen = inspect(path);
  EXPECT_THAT(seen.problems, IsEmpty());
  EXPECT_THAT(seen.text, AllOf(HasSubstr("checkpoint " + path.string()), HasSubstr("step: 400"),
                               HasSubstr("layout: dp=2,ep=2"), HasSubstr("state data.position: 400001200"),
                               HasSubstr("state best: \"inf\"")));
  EXPECT_THAT(line_with(seen.text, "embedding"),
              MatchesRegex("embedding +F32 +\\[12, 6\\] +288 +rank-00000.safetensors +not checked"));
  EXPECT_THAT(
      line_with(seen.text, "experts"),
      MatchesRegex(
          "layers.0.experts +F32 +\\[4, 6, 8\\] +768 +rank-00000.safetensors and 1 more +not checked"));
  EXPECT_THAT(line_with(seen.text, "scalar"), MatchesRegex("scalar +I64 +\\[\\] +8 +rank.*"));
  EXPECT_THAT(line_with(inspect(path, {.verify = true}).text, "embedding"), HasSubstr(" ok"));
  EXPECT_THAT(line_with(seen.text, " tensors, "),
              MatchesRegex("10 tensors, .* elements, .* in 2 files of .*"));
  EXPECT_EQ(inspect(path / "manifest.json").text, seen.text);
  EXPECT_EQ(inspect(path.string() + "/").text, seen.text);
}

TEST(Inspect, ACheckpointAsJson) {
  const TemporaryDirectory dir;
  const fs::path path = save_step(dir.path(), 400);
  const json seen = json_of(path, true);
  EXPECT_EQ(seen["kind"], "checkpoint");
  EXPECT_EQ(seen["step"], 400);
  EXPECT_EQ(seen["ranks"], 2);
  EXPECT_EQ(seen["state"]["data.position"], 400001200);
  EXPECT_EQ(seen["config"], "[train]\nsteps = 7\n");
  EXPECT_EQ(seen["files"].size(), 2u);
  EXPECT_EQ(seen["files"][0]["bytes"], fs::file_size(path / "rank-00000.safetensors"));
  ASSERT_EQ(seen["tensors"].size(), some_tensors().size());
  uint64_t bytes = 0;
  for (const json& tensor : seen["tensors"]) {
    uint64_t pieces = 0;
    for (const json& piece : tensor["pieces"]) {
      EXPECT_EQ(piece["status"], "ok");
      pieces += piece["bytes"].get<uint64_t>();
    }
    EXPECT_EQ(pieces, tensor["bytes"]);
    bytes += pieces;
  }
  EXPECT_EQ(seen["totals"]["bytes"], bytes);
  EXPECT_THAT(seen["problems"], IsEmpty());
}

TEST(Inspect, DamageIsAProblemNotTheEnd) {
  const TemporaryDirectory dir;
  const fs::path path = save_step(dir.path(), 400);
  const SafetensorsFile shard(path / "rank-00001.safetensors");
  flip(shard.path(), shard.data_begin() + shard.at("layers.0.experts").begin + 5);
  EXPECT_THAT(inspect(path).problems, IsEmpty());  // nothing was read
  const Inspection seen = inspect(path, {.verify = true});
  ASSERT_EQ(seen.problems.size(), 1u);
  EXPECT_THAT(seen.problems[0], HasSubstr("rank-00001.safetensors: tensor \"layers.0.experts\" is damaged"));
  EXPECT_THAT(line_with(seen.text, "experts"), HasSubstr("damaged"));
  EXPECT_THAT(line_with(seen.text, "embedding"), HasSubstr(" ok"));
  EXPECT_THAT(seen.text, HasSubstr("problem: " + seen.problems[0]));
  EXPECT_EQ(json_of(path, true)["problems"][0], seen.problems[0]);

  fs::remove(shard.path());
  EXPECT_THAT(inspect(path).problems[0], HasSubstr("rank-00001.safetensors: No such file"));
  flip(path / "manifest.json", 100);
  EXPECT_THAT([&] { inspect(path); },
              ThrowsMessage<Error>(AllOf(HasSubstr("manifest.json"), HasSubstr("no other"))));
  fs::remove(path / "manifest.json");
  EXPECT_THAT([&] { inspect(path); }, ThrowsMessage<Error>(HasSubstr("manifest.json: No such file")));
}

TEST(Inspect, ARunsDirectory) {
  const TemporaryDirectory dir;
  save_step(dir.path(), 380);
  save_step(dir.path(), 400);
  Inspection seen = inspect(dir.path());
  EXPECT_THAT(line_with(seen.text, "step-00000380"), MatchesRegex("step-00000380 +complete"));
  EXPECT_THAT(line_with(seen.text, "step-00000400  "),
              MatchesRegex("step-00000400 +complete +<- the one to go on.*"));
  EXPECT_THAT(seen.text, HasSubstr("checkpoint " + (dir / "step-00000400").string()));
  EXPECT_EQ(json_of(dir.path())["latest"]["step"], 400);
  EXPECT_EQ(json_of(dir.path())["checkpoints"][0]["complete"], true);

  fs::resize_file(dir / "step-00000400/rank-00000.safetensors", 5);
  seen = inspect(dir.path());
  EXPECT_THAT(line_with(seen.text, "step-00000380"), HasSubstr("<- the one to go on from"));
  EXPECT_THAT(line_with(seen.text, "step-00000400  "), HasSubstr("incomplete"));
  ASSERT_EQ(seen.problems.size(), 1u);
  EXPECT_THAT(seen.problems[0], HasSubstr("rank-00000.safetensors: it has 5 bytes"));
  EXPECT_EQ(json_of(dir.path())["latest"]["step"], 380);

  fs::remove(dir / "step-00000380/manifest.json");
  seen = inspect(dir.path());
  EXPECT_THAT(seen.problems, Not(IsEmpty()));
  EXPECT_TRUE(json_of(dir.path())["latest"].is_null());
}

TEST(Inspect, SafetensorsFilesWithDTypesThatWeDoNotKnow) {
  const TemporaryDirectory dir;
  write_file(
      dir / "a.safetensors",
      R"({"__metadata__":{"format":"pt"},"q\u001b[31m":{"dtype":"Q3_K","shape":[7,5],"data_offsets":[0,15]},)"
      R"("w":{"dtype":"BF16","shape":[2],"data_offsets":[15,19]}})",
      std::string(19, 'q'));
  const Inspection seen = inspect(dir / "a.safetensors", {.verify = true});
  EXPECT_THAT(seen.problems, IsEmpty());
  EXPECT_THAT(seen.text, HasSubstr("metadata format: \"pt\""));
  EXPECT_THAT(line_with(seen.text, "Q3_K"),
              MatchesRegex(R"(q\\u001b\[31m +Q3_K +\[7, 5\] +15 +a.safetensors)"));
  EXPECT_THAT(seen.text, HasSubstr("2 tensors, 37 elements, 19 B in 1 files of"));
  const json as_json = json_of(dir / "a.safetensors");
  EXPECT_EQ(as_json["tensors"][0]["name"], "q\x1b[31m");
  EXPECT_EQ(as_json["tensors"][1]["pieces"][0]["status"], "none");

  std::ofstream(dir / "model.safetensors.index.json") << R"({"weight_map":{"w":"a.safetensors"}})";
  for (const fs::path& path : {dir / "model.safetensors.index.json", dir.path()}) {
    EXPECT_EQ(json_of(path)["totals"]["tensors"], 1);
  }
}

TEST(Inspect, LongTextsAreCutInTheTableOnly) {
  const TemporaryDirectory dir;
  write_file(dir / "a.safetensors", R"({"__metadata__":{"vocabulary":")" + std::string(5000, 'v') + "\"}}",
             "");
  EXPECT_LT(line_with(inspect(dir / "a.safetensors").text, "vocabulary").size(), 150u);
  EXPECT_EQ(json_of(dir / "a.safetensors")["metadata"]["vocabulary"], std::string(5000, 'v'));
}

TEST(Inspect, OtherThingsAreErrors) {
  const TemporaryDirectory dir;
  EXPECT_THAT([&] { inspect(dir / "none"); },
              ThrowsMessage<Error>(HasSubstr("none: no such file or directory")));
  EXPECT_THAT([&] { inspect(dir.path()); }, ThrowsMessage<Error>(HasSubstr("neither a checkpoint")));
  std::ofstream(dir / "notes.txt") << "hello, this is text";
  EXPECT_THAT([&] { inspect(dir / "notes.txt"); }, ThrowsMessage<Error>(HasSubstr("not a safetensors file")));
}

}  // namespace
}  // namespace phalanx
