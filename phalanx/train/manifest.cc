#include "phalanx/train/manifest.h"

#include <bit>
#include <cmath>

#include "phalanx/base/error.h"
#include "phalanx/model/safetensors.h"
#include "phalanx/model/strict_json-inl.h"
#include "phalanx/train/checksum.h"

namespace phalanx {
namespace {

using strict_json::as_array;
using strict_json::as_count;
using strict_json::as_counts;
using strict_json::as_object;
using strict_json::as_text;
using strict_json::Json;
using strict_json::member;
using strict_json::quote_name;

constexpr std::string_view kFormat = "phalanx-checkpoint";
constexpr uint64_t kVersion = 1;
constexpr std::string_view kBeforeChecksum = ",\n\"checksum\":\"xxh3-64:";
constexpr std::string_view kAfterChecksum = "\"\n}\n";
constexpr size_t kChecksumDigits = 16;

Json to_json(const Shape& shape) { return std::vector(shape.extents().begin(), shape.extents().end()); }

// A double that JSON cannot say is an object with its bits.
Json to_json(const TrainerState::Value& value) {
  if (const auto* d = std::get_if<double>(&value); d && !std::isfinite(*d)) {
    return {{"f64", checksum_text(std::bit_cast<uint64_t>(*d))}};
  }
  return std::visit([](const auto& v) { return Json(v); }, value);
}

TrainerState::Value value_from(const Json& json, const std::string& where) {
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_unsigned()) return json.get<uint64_t>();
  if (json.is_number_integer()) return json.get<int64_t>();
  if (json.is_number_float()) return json.get<double>();
  if (json.is_string()) return json.get<std::string>();
  const auto bits = parse_checksum(as_text(member(json, "f64", where), where));
  if (!bits) throw Error("{}: \"f64\" is not 16 hexadecimal digits", where);
  return std::bit_cast<double>(*bits);
}

Json to_json(const SavedTensor& tensor) {
  Json pieces = Json::array();
  for (const SavedPiece& piece : tensor.pieces) {
    Json checksums = Json::array();
    for (const uint64_t checksum : piece.checksums) checksums.push_back(checksum_text(checksum));
    pieces.push_back({{"file", piece.file},
                      {"key", piece.key},
                      {"begin", to_json(piece.box.begin)},
                      {"end", to_json(piece.box.end)},
                      {"checksums", std::move(checksums)}});
  }
  return {{"dtype", safetensors_dtype(tensor.dtype)},
          {"shape", to_json(tensor.shape)},
          {"pieces", std::move(pieces)}};
}

uint64_t checksum_from(const Json& json, const std::string& where) {
  const auto checksum = parse_checksum(as_text(json, where));
  if (!checksum) throw Error("{}: a checksum is 16 hexadecimal digits, found {}", where, json.dump());
  return *checksum;
}

Shape shape_from(const Json& json, const std::string& where) {
  const std::vector<int64_t> extents = as_counts(json, where);
  if (extents.size() > Shape::kMaxRank) {
    throw Error("{}: {} dimensions, at most {}", where, extents.size(), Shape::kMaxRank);
  }
  return Shape(std::span(extents));
}

SavedPiece piece_from(const Json& json, const std::string& where) {
  SavedPiece piece{.file = as_text(member(json, "file", where), where),
                   .key = as_text(member(json, "key", where), where),
                   .box = {.begin = shape_from(member(json, "begin", where), where),
                           .end = shape_from(member(json, "end", where), where)},
                   .checksums = {}};
  for (const Json& checksum : as_array(member(json, "checksums", where), where)) {
    piece.checksums.push_back(checksum_from(checksum, where));
  }
  return piece;
}

SavedTensor tensor_from(const Json& json, const std::string& where) {
  SavedTensor tensor;
  const std::string& dtype = as_text(member(json, "dtype", where), where);
  const std::optional<DType> known = dtype_of_safetensors(dtype);
  if (!known) throw Error("{}: dtype {} is unknown", where, quote_name(dtype));
  tensor.dtype = *known;
  tensor.shape = shape_from(member(json, "shape", where), where);
  uint64_t bytes = dtype_size(tensor.dtype);
  for (const int64_t extent : tensor.shape.extents()) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(extent), &bytes)) {
      throw Error("{}: shape {} has more bytes than can be counted", where, tensor.shape);
    }
  }
  for (const Json& piece : as_array(member(json, "pieces", where), where)) {
    tensor.pieces.push_back(piece_from(piece, where));
  }
  return tensor;
}

// The text before its checksum. Error when the two do not fit.
std::string_view checked_body(std::string_view text, const std::string& where) {
  const size_t tail = kBeforeChecksum.size() + kChecksumDigits + kAfterChecksum.size();
  if (text.size() < tail || !text.ends_with(kAfterChecksum) ||
      text.substr(text.size() - tail, kBeforeChecksum.size()) != kBeforeChecksum) {
    throw Error("{}: it does not end with its checksum: cut off or damaged", where);
  }
  const std::string_view body = text.substr(0, text.size() - tail);
  const std::string_view digits =
      text.substr(text.size() - kAfterChecksum.size() - kChecksumDigits, kChecksumDigits);
  const std::string found = checksum_text(xxh3(body));
  if (digits != found) {
    throw Error("{}: its checksum is {}, but it says {}: damaged, or changed by hand", where, found,
                quote_name(digits));
  }
  return body;
}

// Lines `"name":{…}` of an object, so that a manifest can be read and compared by line.
template <class Map, class ToJson>
std::string lines(const Map& map, ToJson value_of) {
  std::string s = "{";
  for (const auto& [name, value] : map) {
    s += format("{}\n {}: {}", s.size() > 1 ? "," : "", Json(name).dump(), value_of(value).dump());
  }
  return s + "}";
}

}  // namespace

std::string manifest_text(const Manifest& m) {
  std::string s = "{";
  s += format("\n\"format\": \"{}\",\n\"version\": {},\n\"step\": {},\n\"ranks\": {}", kFormat, kVersion,
              m.step, m.ranks);
  s += format(",\n\"layout\": {},\n\"config\": {}", Json(m.layout).dump(), Json(m.config).dump());
  s += ",\n\"state\": ";
  s += lines(m.state.values(), [](const TrainerState::Value& value) { return to_json(value); });
  s += ",\n\"files\": ";
  s += lines(m.files, [](const SavedFile& file) {
    return Json{{"bytes", file.bytes}, {"header_checksum", checksum_text(file.header_checksum)}};
  });
  s += ",\n\"tensors\": ";
  s += lines(m.tensors, [](const SavedTensor& tensor) { return to_json(tensor); });
  const std::string checksum = checksum_text(xxh3(s));
  s += kBeforeChecksum;
  s += checksum;
  s += kAfterChecksum;
  return s;
}

Manifest parse_manifest(std::string_view text, const std::string& where) {
  const Json json = strict_json::parse(std::string(checked_body(text, where)) + "}", where);
  if (const std::string& is = as_text(member(json, "format", where), where); is != kFormat) {
    throw Error("{}: format is {}, expected {}", where, quote_name(is), kFormat);
  }
  if (const uint64_t version = as_count(member(json, "version", where), UINT64_MAX, where);
      version != kVersion) {
    throw Error("{}: version {} of the format, this program reads version {}", where, version, kVersion);
  }
  Manifest m;
  m.step = static_cast<int64_t>(as_count(member(json, "step", where), INT64_MAX, where));
  m.ranks = static_cast<int>(as_count(member(json, "ranks", where), INT32_MAX, where));
  m.layout = as_text(member(json, "layout", where), where);
  m.config = as_text(member(json, "config", where), where);
  for (const auto& [key, value] : as_object(member(json, "state", where), where).items()) {
    m.state.set(key, value_from(value, format("{}: state {}", where, quote_name(key))));
  }
  for (const auto& [name, value] : as_object(member(json, "files", where), where).items()) {
    const std::string at = format("{}: file {}", where, quote_name(name));
    m.files[name] = {.bytes = as_count(member(value, "bytes", at), INT64_MAX, at),
                     .header_checksum = checksum_from(member(value, "header_checksum", at), at)};
  }
  for (const auto& [name, value] : as_object(member(json, "tensors", where), where).items()) {
    m.tensors.emplace(name, tensor_from(value, format("{}: tensor {}", where, quote_name(name))));
  }
  return m;
}

void merge_manifest(Manifest& into, Manifest part, const std::string& where) {
  into.files.merge(part.files);
  if (!part.files.empty()) throw Error("{}: two ranks wrote {}", where, part.files.begin()->first);
  for (auto& [name, tensor] : part.tensors) {
    const auto [at, is_new] = into.tensors.try_emplace(name, SavedTensor{tensor.dtype, tensor.shape, {}});
    SavedTensor& merged = at->second;
    if (!is_new && (merged.dtype != tensor.dtype || merged.shape != tensor.shape)) {
      throw Error("{}: tensor {} has shape {} of {} on one rank, {} of {} on another", where,
                  quote_name(name), merged.shape, dtype_name(merged.dtype), tensor.shape,
                  dtype_name(tensor.dtype));
    }
    std::ranges::move(tensor.pieces, std::back_inserter(merged.pieces));
  }
}

void check_manifest(const Manifest& manifest, const std::string& where) {
  for (const auto& [name, tensor] : manifest.tensors) {
    std::string fault;
    std::vector<Box> boxes;
    for (const SavedPiece& piece : tensor.pieces) {
      if (fault.empty()) fault = box_fault(piece.box, tensor.shape);
      if (!fault.empty()) break;
      boxes.push_back(piece.box);
      const uint64_t blocks = (tensor.piece_bytes(piece) + BlockReader::kBlock - 1) / BlockReader::kBlock;
      if (!manifest.files.contains(piece.file))
        fault = format("file {} is not listed", quote_name(piece.file));
      if (piece.checksums.size() != blocks) {
        fault = format("{} checksums of {} blocks", piece.checksums.size(), blocks);
      }
    }
    if (fault.empty()) fault = tiling_fault(tensor.shape, boxes);
    if (!fault.empty()) throw Error("{}: tensor {}: {}", where, quote_name(name), fault);
  }
}

}  // namespace phalanx
