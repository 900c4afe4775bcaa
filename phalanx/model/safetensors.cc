#include "phalanx/model/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <tuple>

#include "phalanx/base/error.h"
#include "phalanx/base/units.h"
#include "phalanx/model/strict_json-inl.h"

namespace phalanx {
namespace {

using strict_json::Json;
using strict_json::quote_name;

static_assert(std::endian::native == std::endian::little, "the format is little-endian, and so are we");

constexpr uint64_t kLongestHeader = 100'000'000;
constexpr uint64_t kLengthBytes = 8;
constexpr std::string_view kMetadata = "__metadata__";

struct StoredDType {
  std::string_view name;
  uint64_t bits;
  std::string_view ours;  // "" where we have none
};
constexpr std::array kDTypes = std::to_array<StoredDType>({
    {"F64", 64, "f64"},       {"F32", 32, "f32"},       {"BF16", 16, "bf16"}, {"F16", 16, "f16"},
    {"F8_E4M3", 8, "f8e4m3"}, {"F8_E5M2", 8, "f8e5m2"}, {"I64", 64, "i64"},   {"I32", 32, "i32"},
    {"I8", 8, "i8"},          {"U8", 8, "u8"},          {"U64", 64, ""},      {"U32", 32, ""},
    {"U16", 16, ""},          {"I16", 16, ""},          {"BOOL", 8, ""},      {"C64", 64, ""},
    {"F8_E8M0", 8, ""},       {"F6_E2M3", 6, ""},       {"F6_E3M2", 6, ""},   {"F4", 4, ""},
});

// Bits of the whole tensor; nothing for a dtype that we never heard of. Error: more than fit 64 bits.
std::optional<uint64_t> stored_bits(const StoredTensor& tensor, const std::string& where) {
  uint64_t n = 1;
  bool fits = true;
  for (const int64_t extent : tensor.shape) {
    fits = fits && !__builtin_mul_overflow(n, static_cast<uint64_t>(extent), &n);
  }
  const auto known = std::ranges::find(kDTypes, tensor.dtype, &StoredDType::name);
  if (known != kDTypes.end()) fits = fits && !__builtin_mul_overflow(n, known->bits, &n);
  if (!fits) {
    throw Error("{}: shape {} of {} has more bytes than can be counted", where, std::span(tensor.shape),
                tensor.dtype);
  }
  return known == kDTypes.end() ? std::nullopt : std::optional(n);
}

StoredTensor parse_tensor(const std::string& name, const Json& value, const std::string& file) {
  const std::string where = format("{}: tensor {}", file, quote_name(name));
  StoredTensor t{.name = name};
  t.dtype = strict_json::as_text(strict_json::member(value, "dtype", where), where + ": \"dtype\"");
  t.shape = strict_json::as_counts(strict_json::member(value, "shape", where), where + ": \"shape\"");
  const auto offsets =
      strict_json::as_counts(strict_json::member(value, "data_offsets", where), where + ": \"data_offsets\"");
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    throw Error("{}: \"data_offsets\" is [begin, end], found {}", where, std::span(offsets));
  }
  t.begin = static_cast<uint64_t>(offsets[0]);
  t.end = static_cast<uint64_t>(offsets[1]);
  const std::optional<uint64_t> bits = stored_bits(t, where);
  if (bits && (*bits % 8 != 0 || *bits / 8 != t.bytes())) {
    throw Error("{}: shape {} of {} needs {} bytes, its data_offsets {} hold {}", where, std::span(t.shape),
                t.dtype, grouped((*bits + 7) / 8), std::span(offsets), grouped(t.bytes()));
  }
  return t;
}

// Sorts by place; then each tensor must begin where the one before ends, and the last one end the file.
void check_places(std::vector<StoredTensor>& tensors, uint64_t data_bytes, const std::string& file) {
  std::ranges::sort(tensors, [](const StoredTensor& a, const StoredTensor& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t at = 0;
  const StoredTensor* before = nullptr;
  for (const StoredTensor& t : tensors) {
    const std::string_view kind = t.begin < at ? "overlaps what lies before it" : "leaves a hole before it";
    if (t.begin != at) {
      throw Error("{}: tensor {} begins at byte {} and {}: {} ends at {}", file, quote_name(t.name),
                  grouped(t.begin), kind, before ? "tensor " + quote_name(before->name) : "the header",
                  grouped(at));
    }
    if (t.end > data_bytes) {
      throw Error("{}: tensor {} needs {} bytes at offset {}, the file ends {} bytes early", file,
                  quote_name(t.name), grouped(t.bytes()), grouped(t.begin), grouped(t.end - data_bytes));
    }
    at = t.end;
    before = &t;
  }
  if (at != data_bytes) {
    throw Error("{}: {} bytes follow the last tensor", file, grouped(data_bytes - at));
  }
}

std::string read_header(const InputFile& file) {
  const std::string where = file.path().string();
  if (file.size() < kLengthBytes) {
    throw Error("{}: not a safetensors file: it has {} bytes, the header's length alone needs 8", where,
                file.size());
  }
  uint64_t length = 0;
  file.read_at(0, std::as_writable_bytes(std::span(&length, 1)));
  if (length > kLongestHeader) {
    throw Error(
        "{}: the header would have {} bytes, at most {} are allowed: not a safetensors file, or damaged",
        where, grouped(length), grouped(kLongestHeader));
  }
  if (length > file.size() - kLengthBytes) {
    throw Error("{}: the header has {} bytes, the file ends {} bytes early", where, grouped(length),
                grouped(length - (file.size() - kLengthBytes)));
  }
  std::string header(length, '\0');
  file.read_at(kLengthBytes, std::as_writable_bytes(std::span(header)));
  if (!header.starts_with('{')) throw Error("{}: the header does not begin with \"{{\"", where);
  return header;
}

uint64_t stored_bytes(const TensorToStore& tensor) {
  return static_cast<uint64_t>(tensor.shape.numel()) * dtype_size(tensor.dtype);
}

uint64_t stored_bytes(std::span<const TensorToStore> tensors) {
  uint64_t sum = 0;
  for (const TensorToStore& t : tensors) sum += stored_bytes(t);
  return sum;
}

// The length and the header.
std::string header_text(std::span<const TensorToStore> tensors, const SafetensorsMetadata& metadata) {
  std::string json = "{";
  if (!metadata.empty()) json += format("\"{}\":{}", kMetadata, Json(metadata).dump());
  uint64_t at = 0;
  for (const TensorToStore& t : tensors) {
    const uint64_t end = at + stored_bytes(t);
    const Json entry = {{"dtype", safetensors_dtype(t.dtype)},
                        {"shape", std::vector(t.shape.extents().begin(), t.shape.extents().end())},
                        {"data_offsets", {at, end}}};
    if (json.size() > 1) json += ',';
    json += Json(t.name).dump() + ':' + entry.dump();
    at = end;
  }
  json += '}';
  json.append((kLengthBytes - json.size() % kLengthBytes) % kLengthBytes, ' ');
  const uint64_t length = json.size();
  std::string header(kLengthBytes, '\0');
  std::memcpy(header.data(), &length, kLengthBytes);
  return header + json;
}

}  // namespace

std::string_view safetensors_dtype(DType dtype) {
  const auto found = std::ranges::find(kDTypes, dtype_name(dtype), &StoredDType::ours);
  PHX_CHECK(found != kDTypes.end(), "dtype {} has no name in safetensors files", dtype_name(dtype));
  return found->name;
}

std::optional<DType> dtype_of_safetensors(std::string_view name) {
  const auto found = std::ranges::find(kDTypes, name, &StoredDType::name);
  if (found == kDTypes.end() || found->ours.empty()) return std::nullopt;
  for (int i = 0; i < 256; ++i) {
    const auto dtype = static_cast<DType>(i);
    if (dtype_name(dtype) == found->ours) return dtype;
  }
  return std::nullopt;
}

SafetensorsFile::SafetensorsFile(std::filesystem::path path) : path_(std::move(path)) {
  const InputFile file(path_);
  const std::string where = path_.string();
  const std::string header = read_header(file);
  data_begin_ = kLengthBytes + header.size();
  file_bytes_ = file.size();
  const Json json = strict_json::parse(header, where);
  for (const auto& [name, value] : json.items()) {
    if (name != kMetadata) {
      tensors_.push_back(parse_tensor(name, value, where));
      continue;
    }
    for (const auto& [key, text] : strict_json::as_object(value, where + ": \"__metadata__\"").items()) {
      metadata_[key] = strict_json::as_text(text, format("{}: \"__metadata__\": {}", where, quote_name(key)));
    }
  }
  check_places(tensors_, file_bytes_ - data_begin_, where);
  for (size_t i = 0; i < tensors_.size(); ++i) by_name_.emplace(tensors_[i].name, i);
}

const StoredTensor* SafetensorsFile::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

const StoredTensor& SafetensorsFile::at(std::string_view name) const {
  const StoredTensor* tensor = find(name);
  if (!tensor) {
    throw Error("{}: tensor {} is missing; the file has {} tensors", path_.string(), quote_name(name),
                tensors_.size());
  }
  return *tensor;
}

void SafetensorsFile::load(const StoredTensor& tensor, const Box& box, Tensor into) const {
  const std::string where = format("{}: tensor {}", path_.string(), quote_name(tensor.name));
  if (tensor.dtype != safetensors_dtype(into.dtype())) {
    throw Error("{}: it has dtype {}, expected {}", where, tensor.dtype, safetensors_dtype(into.dtype()));
  }
  if (tensor.shape.size() != static_cast<size_t>(box.begin.rank())) {
    throw Error("{}: it has shape {}, part {} is wanted", where, std::span(tensor.shape), box.text());
  }
  const auto full = Shape(std::span<const int64_t>(tensor.shape));
  if (const std::string fault = box_fault(box, full); !fault.empty()) throw Error("{}: {}", where, fault);
  BlockReader reader(*this, tensor, [](size_t, std::span<const std::byte>) {});
  read_shared(reader, whole(full), box, std::move(into));
}

BlockReader::BlockReader(const SafetensorsFile& file, const StoredTensor& tensor, Check check)
    : file_(file.path()),
      begin_(file.data_begin() + tensor.begin),
      bytes_(tensor.bytes()),
      check_(std::move(check)) {}

uint64_t BlockReader::block_bytes(uint64_t block) const { return std::min(kBlock, bytes_ - block * kBlock); }

void BlockReader::fetch(uint64_t block, std::span<std::byte> into) {
  file_.read_at(begin_ + block * kBlock, into);
  check_(block, into);
}

void BlockReader::read(uint64_t offset, std::span<std::byte> into) {
  PHX_CHECK(offset <= bytes_ && into.size() <= bytes_ - offset, "bytes {}..{} of {}", offset,
            offset + into.size(), bytes_);
  while (!into.empty()) {
    const uint64_t block = offset / kBlock;
    const uint64_t skip = offset % kBlock;
    const size_t n = std::min<uint64_t>(block_bytes(block) - skip, into.size());
    if (n == block_bytes(block)) {  // a whole block goes straight to its place
      fetch(block, into.first(n));
    } else {
      if (current_ != block) {
        current_.reset();
        buffer_.resize(block_bytes(block));
        fetch(block, buffer_);
        current_ = block;
      }
      std::memcpy(into.data(), buffer_.data() + skip, n);
    }
    offset += n;
    into = into.subspan(n);
  }
}

void BlockReader::read_all() {
  for (uint64_t block = 0; block * kBlock < bytes_; ++block) {
    buffer_.resize(block_bytes(block));
    fetch(block, buffer_);
  }
}

void read_shared(BlockReader& reader, const Box& stored, const Box& wanted, Tensor into) {
  PHX_CHECK(into.numel() == wanted.volume(), "part {} into shape {}", wanted.text(), into.shape());
  const size_t size = dtype_size(into.dtype());
  for_each_shared_run(stored, wanted, [&](const SharedRun& run) {
    reader.read(
        static_cast<size_t>(run.in_from) * size,
        std::span(into.raw() + static_cast<size_t>(run.in_to) * size, static_cast<size_t>(run.count) * size));
  });
}

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, std::span<const TensorToStore> tensors,
                                     const SafetensorsMetadata& metadata)
    : header_(header_text(tensors, metadata)),
      file_bytes_(header_.size() + stored_bytes(tensors)),
      file_(std::move(path)) {
  if (header_.size() - kLengthBytes > kLongestHeader) {
    throw Error("{}: a header of {} bytes, at most {} are allowed: fewer tensors a file",
                file_.path().string(), grouped(header_.size()), grouped(kLongestHeader));
  }
  file_.reserve(file_bytes_);
  file_.append(header_);
}

void SafetensorsWriter::finish() {
  PHX_CHECK(file_.size() == file_bytes_, "{}: {} bytes announced, {} came", file_.path().string(),
            file_bytes_, file_.size());
  file_.finish();
}

}  // namespace phalanx
