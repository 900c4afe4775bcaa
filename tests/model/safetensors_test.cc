#include "phalanx/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <random>

#include "phalanx/base/error.h"
#include "tests/model/safetensors_bytes.h"
#include "tests/temporary_directory.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;
using phalanx::testing::file_bytes;
using phalanx::testing::length_of;
using phalanx::testing::TemporaryDirectory;
using phalanx::testing::write_bytes;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr std::array kDTypes = {DType::f64, DType::f32, DType::i64, DType::i32, DType::u8};

std::string data_of(const SafetensorsFile& file, const StoredTensor& t) {
  const std::string all = read_text(file.path(), UINT64_MAX);
  return all.substr(file.data_begin() + t.begin, t.bytes());
}

Tensor random_tensor(const Shape& shape, DType dtype, std::mt19937& random) {
  const Tensor t = Tensor::empty(shape, dtype);
  for (size_t i = 0; i < t.bytes(); ++i) t.raw()[i] = static_cast<std::byte>(random() & 0xff);
  return t;
}

std::span<const std::byte> bytes_of(const Tensor& t) { return {t.raw(), t.bytes()}; }

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.bytes() == b.bytes() && (a.bytes() == 0 || std::memcmp(a.raw(), b.raw(), a.bytes()) == 0);
}

// As the Python package writes np.array([1, 2], float32) and an empty i64 with a note, made by hand.
TEST(Safetensors, ReadsAGoldenFile) {
  const TemporaryDirectory dir;
  const std::string header =
      R"({"__metadata__":{"format":"np"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
      R"("none":{"dtype":"I64","shape":[0,3],"data_offsets":[8,8]},"s":{"dtype":"BOOL","shape":[],)"
      R"("data_offsets":[8,9]}}   )";
  write_bytes(dir / "a.safetensors", file_bytes(header, std::string("\0\0\x80\x3f\0\0\0\x40\x01", 9)));
  const SafetensorsFile file(dir / "a.safetensors");
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.metadata().at("format"), "np");
  const Tensor a = Tensor::empty({2}, DType::f32);
  file.load(file.at("a"), whole({2}), a);
  EXPECT_EQ(a.data<float>()[0], 1.0f);
  EXPECT_EQ(a.data<float>()[1], 2.0f);
  EXPECT_EQ(file.at("none").bytes(), 0u);
  EXPECT_EQ(file.at("s").dtype, "BOOL");
  EXPECT_TRUE(file.at("s").shape.empty());
  EXPECT_EQ(file.find("b"), nullptr);
}

TEST(Safetensors, WritesAGoldenFile) {
  const TemporaryDirectory dir;
  const std::vector<TensorToStore> tensors = {{"a", DType::f32, {2}}, {"b \"x\"", DType::u8, {}}};
  SafetensorsWriter writer(dir / "a", tensors);
  writer.append(std::as_bytes(std::span("\0\0\x80\x3f\0\0\0\x40", 8)));
  writer.append(std::as_bytes(std::span("\x07", 1)));
  writer.finish();
  const std::string header = R"({"a":{"data_offsets":[0,8],"dtype":"F32","shape":[2]},)"
                             R"("b \"x\"":{"data_offsets":[8,9],"dtype":"U8","shape":[]}})";
  const std::string padding((8 - header.size() % 8) % 8, ' ');
  EXPECT_EQ(read_text(dir / "a", 1000),
            file_bytes(header + padding, std::string("\0\0\x80\x3f\0\0\0\x40\x07", 9)));
}

TEST(Safetensors, RoundTripsAnyTensorsInAnyPortionsAndParts) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const TemporaryDirectory dir;
  for (int trial = 0; trial < 30; ++trial) {
    std::vector<TensorToStore> headers;
    std::vector<Tensor> tensors;
    const size_t count = random() % 6;
    for (size_t i = 0; i < count; ++i) {
      std::vector<int64_t> extents(random() % 6);
      for (int64_t& e : extents) e = static_cast<int64_t>(random() % 6);
      const auto shape = Shape(std::span<const int64_t>(extents));
      const DType dtype = kDTypes[random() % kDTypes.size()];
      headers.push_back({format("tensor é {}", i), dtype, shape});
      tensors.push_back(random_tensor(shape, dtype, random));
    }
    const fs::path path = dir / format("{}.safetensors", trial);
    SafetensorsWriter writer(path, headers, {{"note", "\n\"…"}});
    for (const Tensor& t : tensors) {
      const std::span<const std::byte> bytes = bytes_of(t);
      const size_t cut = bytes.empty() ? 0 : random() % bytes.size();
      writer.append(bytes.first(cut));
      writer.append(bytes.subspan(cut));
    }
    writer.finish();

    const SafetensorsFile file(path);
    EXPECT_EQ(file.data_begin() % 8, 0u);
    EXPECT_EQ(file.file_bytes(), writer.file_bytes());
    EXPECT_EQ(file.metadata().at("note"), "\n\"…");
    ASSERT_EQ(file.tensors().size(), count);
    for (size_t i = 0; i < count; ++i) {
      const Tensor back = Tensor::empty(headers[i].shape, headers[i].dtype);
      file.load(file.at(headers[i].name), whole(headers[i].shape), back);
      EXPECT_TRUE(same_bytes(back, tensors[i]));
    }
  }
}

// Larger than the blocks in which it is read, cut along each dimension.
TEST(Safetensors, LoadsPartsOfALargeTensor) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const TemporaryDirectory dir;
  const Shape shape{3, 700, 1001};
  const Tensor all = random_tensor(shape, DType::i32, random);
  const std::vector<TensorToStore> headers = {{"a", DType::i32, shape}};
  SafetensorsWriter writer(dir / "a", headers);
  writer.append(bytes_of(all));
  writer.finish();
  const SafetensorsFile file(dir / "a");
  for (const Box& box :
       {whole(shape), Box{{1, 0, 0}, {3, 700, 1001}}, Box{{0, 13, 0}, {3, 651, 1001}},
        Box{{0, 0, 500}, {3, 700, 1001}}, Box{{2, 699, 1000}, {3, 700, 1001}}, Box{{1, 1, 1}, {1, 5, 5}}}) {
    SCOPED_TRACE(box.text());
    const Tensor part = Tensor::empty(box.extents(), DType::i32);
    file.load(file.at("a"), box, part);
    int64_t i = 0;
    bool same = true;
    for (int64_t x = box.begin[0]; x < box.end[0]; ++x) {
      for (int64_t y = box.begin[1]; y < box.end[1]; ++y) {
        for (int64_t z = box.begin[2]; z < box.end[2]; ++z) {
          same = same && part.data<int32_t>()[i++] == all.data<int32_t>()[(x * 700 + y) * 1001 + z];
        }
      }
    }
    EXPECT_TRUE(same);
  }
}

struct Damage {
  const char* name;
  std::string file;
  std::vector<std::string> says;
};

std::vector<Damage> damages() {
  const std::string a = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  const std::string eight(8, 'x');
  const std::string sixteen(16, 'x');
  const auto one = [&](const std::string& entry) { return file_bytes("{\"t\":" + entry + "}", eight); };
  const auto raw = [](const std::string& s) { return file_bytes(s, ""); };
  return {
      {"Empty", "", {"has 0 bytes"}},
      {"Short", "1234567", {"has 7 bytes"}},
      {"HeaderOver100MB", length_of(100'000'001) + "{}", {"100,000,001 bytes, at most 100,000,000"}},
      {"HeaderLengthHuge", length_of(UINT64_MAX) + "{}", {"18,446,744,073,709,551,615"}},
      {"HeaderCut", length_of(10) + "{}", {"header has 10 bytes, the file ends 8 bytes early"}},
      {"HeaderEmpty", raw(""), {"does not begin with"}},
      {"HeaderBeginsWithSpace", raw(" {}"), {"does not begin with"}},
      {"NotJson", raw("{\"a\":"), {"not JSON"}},
      {"TwoJsons", raw("{}{}"), {"not JSON"}},
      {"ZeroByte", raw(std::string("{}\0\0", 4)), {"zero byte"}},
      {"NotUtf8", raw("{\"\xff\":1}"), {"not JSON", "UTF-8", "\uFFFD"}},
      {"Deep", raw("{\"a\":" + std::string(50, '[') + std::string(50, ']') + "}"), {"nested deeper"}},
      {"NotAnObject", raw("{\"a\":3}"), {"tensor \"a\"", "object", "found 3"}},
      {"DuplicateTensor", file_bytes("{" + a + "," + a + "}", eight), {"\"a\" stands there twice"}},
      {"DuplicateKey",
       one(R"({"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]})"),
       {"\"dtype\" stands there twice"}},
      {"DuplicateMetadata", raw(R"({"__metadata__":{"k":"1","k":"2"}})"), {"\"k\" stands there twice"}},
      {"MetadataNotText", raw(R"({"__metadata__":{"k":1}})"), {"\"k\"", "text is expected, found 1"}},
      {"NoDType", one(R"({"shape":[2],"data_offsets":[0,8]})"), {"tensor \"t\"", "\"dtype\" is missing"}},
      {"NoShape", one(R"({"dtype":"F32","data_offsets":[0,8]})"), {"tensor \"t\"", "\"shape\" is missing"}},
      {"NoOffsets", one(R"({"dtype":"F32","shape":[2]})"), {"tensor \"t\"", "\"data_offsets\" is missing"}},
      {"DTypeNotText", one(R"({"dtype":7,"shape":[2],"data_offsets":[0,8]})"), {"\"t\"", "text", "found 7"}},
      {"ShapeNotList",
       one(R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})"),
       {"\"t\"", "list", "found 2"}},
      {"ShapeNegative", one(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"), {"\"t\"", "found -2"}},
      {"ShapeNotWhole", one(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})"), {"\"t\"", "found 2.0"}},
      {"ShapeOver64Bits",
       one(R"({"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,8]})"),
       {"\"t\"", "whole number"}},
      {"ShapeOver63Bits",
       one(R"({"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]})"),
       {"\"t\"", "found 9223372036854775808"}},
      {"ProductOverflows",  // 2^62 · 4 · 4 bytes = 2^66, which is 0 in 64 bits
       one(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]})"),
       {"\"t\"", "more bytes than can be counted"}},
      {"ProductOverflowsBeforeAZero",
       one(R"({"dtype":"U8","shape":[4611686018427387904,4,0],"data_offsets":[0,8]})"),
       {"\"t\"", "more bytes than can be counted"}},
      {"BytesOverflow",  // 2^61 + 1 of 8 bytes each, which is 8 in 64 bits
       one(R"({"dtype":"F64","shape":[2305843009213693953],"data_offsets":[0,8]})"),
       {"\"t\"", "more bytes than can be counted"}},
      {"OffsetsNotTwo", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,8]})"), {"\"t\"", "[0, 8, 8]"}},
      {"OffsetsFalling", one(R"({"dtype":"F32","shape":[0],"data_offsets":[8,0]})"), {"\"t\"", "[8, 0]"}},
      {"TooManyBytes",
       one(R"({"dtype":"U8","shape":[2],"data_offsets":[0,8]})"),
       {"\"t\"", "[2] of U8 needs 2 bytes", "[0, 8] hold 8"}},
      {"TooFewBytes",
       one(R"({"dtype":"F64","shape":[2],"data_offsets":[0,8]})"),
       {"needs 16 bytes", "hold 8"}},
      {"HalfBytes",
       one(R"({"dtype":"F4","shape":[15],"data_offsets":[0,8]})"),
       {"\"t\"", "F4 needs 8 bytes"}},
      {"EndsEarly",
       file_bytes("{" + a + "}", "1234567"),
       {"\"a\" needs 8 bytes at offset 0", "1 bytes early"}},
      {"TrailingBytes", file_bytes("{" + a + "}", eight + "y"), {"1 bytes follow the last tensor"}},
      {"TrailingWithoutTensors", file_bytes("{}", "y"), {"1 bytes follow"}},
      {"HoleAtTheStart",
       file_bytes(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})", sixteen),
       {"\"t\" begins at byte 8", "hole", "header ends at 0"}},
      {"HoleBetween",
       file_bytes("{" + a + R"(,"b":{"dtype":"U8","shape":[4],"data_offsets":[12,16]}})", sixteen),
       {"\"b\" begins at byte 12", "hole", "tensor \"a\" ends at 8"}},
      {"Overlap",
       file_bytes("{" + a + R"(,"b":{"dtype":"U8","shape":[12],"data_offsets":[4,16]}})", sixteen),
       {"\"b\" begins at byte 4", "overlaps", "tensor \"a\" ends at 8"}},
      {"SamePlace",
       file_bytes("{" + a + R"(,"b":{"dtype":"F64","shape":[],"data_offsets":[0,8]}})", eight),
       {"\"b\" begins at byte 0", "overlaps"}},
      {"EmptyInsideAnother",
       file_bytes("{" + a + R"(,"b":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}})", eight),
       {"\"b\" begins at byte 4", "overlaps"}},
      {"OffsetsPastTheEnd",
       one(R"({"dtype":"U9","shape":[1],"data_offsets":[0,9223372036854775807]})"),
       {"\"t\" needs 9,223,372,036,854,775,807 bytes", "early"}},
  };
}

class SafetensorsDamage : public ::testing::TestWithParam<Damage> {};

TEST_P(SafetensorsDamage, IsRefused) {
  const TemporaryDirectory dir;
  write_bytes(dir / "bad.safetensors", GetParam().file);
  try {
    const SafetensorsFile file(dir / "bad.safetensors");
    FAIL() << "was read";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("bad.safetensors: "));
    for (const std::string& text : GetParam().says) EXPECT_THAT(e.what(), HasSubstr(text));
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, SafetensorsDamage, ::testing::ValuesIn(damages()),
                         [](const auto& kind) { return std::string(kind.param.name); });

// Whatever is flipped or cut off: refused, or read as a file without overlap or hole; never anything else.
TEST(Safetensors, SurvivesRandomDamage) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const TemporaryDirectory dir;
  const std::string good =
      file_bytes(R"({"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                 R"("y":{"dtype":"I64","shape":[1],"data_offsets":[8,16]},)"
                 R"("z":{"dtype":"U8","shape":[0],"data_offsets":[16,16]}})",
                 std::string(16, 'd'));
  write_bytes(dir / "f", good);
  std::fstream f(dir / "f", std::ios::in | std::ios::out | std::ios::binary);
  int read = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    std::string bytes = good;
    const unsigned flips = 1 + random() % 3;
    for (unsigned i = 0; i < flips; ++i) {
      char& c = bytes[random() % (bytes.size() - 16)];
      c = random() % 2 ? static_cast<char>(random() & 0xff) : static_cast<char>(c ^ (1 << random() % 8));
    }
    f.seekp(0).write(bytes.data(), static_cast<std::streamsize>(bytes.size())).flush();
    try {
      const SafetensorsFile file(dir / "f");
      ++read;
      uint64_t sum = 0;
      for (const StoredTensor& t : file.tensors()) sum += data_of(file, t).size();
      EXPECT_EQ(sum, 16u);
    } catch (const Error&) {
    }
  }
  EXPECT_LT(read, 2900);
  f.seekp(0).write(good.data(), static_cast<std::streamsize>(good.size())).flush();
  EXPECT_NO_THROW(SafetensorsFile(dir / "f"));
  for (size_t n = good.size(); n-- > 0;) {
    fs::resize_file(dir / "f", n);
    EXPECT_THROW(SafetensorsFile(dir / "f"), Error) << n;
  }
}

TEST(Safetensors, UnknownDTypesAreKeptReadableButNotLoaded) {
  const TemporaryDirectory dir;
  write_bytes(dir / "f", file_bytes(R"({"q":{"dtype":"Q3_K","shape":[7,5],"data_offsets":[0,15]}})",
                                    std::string(15, 'q')));
  const SafetensorsFile file(dir / "f");
  EXPECT_EQ(file.at("q").dtype, "Q3_K");
  EXPECT_EQ(file.at("q").shape, (std::vector<int64_t>{7, 5}));
  EXPECT_THAT(
      [&] {
        file.load(file.at("q"), whole({7, 5}), Tensor::empty({7, 5}, DType::f32));
      },
      ThrowsMessage<Error>(AllOf(HasSubstr("tensor \"q\""), HasSubstr("Q3_K, expected F32"))));
}

TEST(Safetensors, LoadingSaysWhatDoesNotFit) {
  const TemporaryDirectory dir;
  write_bytes(dir / "f", file_bytes(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "12345678"));
  const SafetensorsFile file(dir / "f");
  const Tensor f64 = Tensor::empty({2}, DType::f64);
  EXPECT_THAT([&] { file.load(file.at("t"), whole({2}), f64); },
              ThrowsMessage<Error>(HasSubstr("dtype F32, expected F64")));
  const Tensor f32 = Tensor::empty({2}, DType::f32);
  EXPECT_THAT(
      [&] {
        file.load(file.at("t"), {{1}, {3}}, f32);
      },
      ThrowsMessage<Error>(HasSubstr("part [1]..[3] of a tensor of shape [2]")));
  EXPECT_THAT(
      [&] {
        file.load(file.at("t"), whole({1, 2}), f32);
      },
      ThrowsMessage<Error>(HasSubstr("shape [2]")));
  EXPECT_THAT([&] { file.at("u"); }, ThrowsMessage<Error>(HasSubstr("tensor \"u\" is missing")));
}

TEST(Safetensors, DTypeNamesGoBothWays) {
  for (int i = 0; i < 256; ++i) {
    const auto dtype = static_cast<DType>(i);
    if (dtype_name(dtype) == "?") continue;
    EXPECT_EQ(dtype_of_safetensors(safetensors_dtype(dtype)), dtype);
  }
  EXPECT_EQ(dtype_of_safetensors("F32"), DType::f32);
  EXPECT_EQ(dtype_of_safetensors("C64"), std::nullopt);
  EXPECT_EQ(dtype_of_safetensors(""), std::nullopt);
}

TEST(Safetensors, WriterRefusesToEndEarly) {
  const TemporaryDirectory dir;
  const std::vector<TensorToStore> headers = {{"a", DType::f32, {2}}};
  SafetensorsWriter writer(dir / "a", headers);
  EXPECT_THROW(writer.finish(), BrokenPromise);
}

}  // namespace
}  // namespace phalanx
