#include "phalanx/train/saved_checkpoint.h"

#include <algorithm>
#include <system_error>

#include "phalanx/base/units.h"
#include "phalanx/ops/cast.h"
#include "phalanx/train/checksum.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kLongestManifest = uint64_t{1} << 31;

Manifest read_manifest(const fs::path& path) {
  const std::string where = path.string();
  try {
    Manifest manifest = parse_manifest(read_text(path, kLongestManifest), where);
    check_manifest(manifest, where);
    return manifest;
  } catch (const Error& e) {
    throw DamagedCheckpoint(e.what());
  }
}

}  // namespace

SavedCheckpoint::SavedCheckpoint(fs::path directory)
    : path_(std::move(directory)), manifest_(read_manifest(path_ / "manifest.json")) {}

void SavedCheckpoint::check_files() const {
  for (const auto& [name, file] : manifest_.files) {
    std::error_code error;
    const uint64_t bytes = fs::file_size(path_ / name, error);
    if (error) throw DamagedCheckpoint(format("{}: {}", (path_ / name).string(), error.message()));
    if (bytes != file.bytes) {
      throw DamagedCheckpoint(format("{}: it has {} bytes, {} were saved", (path_ / name).string(),
                                     grouped(bytes), grouped(file.bytes)));
    }
  }
}

void SavedCheckpoint::read(std::string_view name, const Shape& full, const Box& box, Tensor into) {
  const auto found = manifest_.tensors.find(name);
  if (found == manifest_.tensors.end()) {
    throw Error("{}: tensor \"{}\" is missing: the checkpoint has {} others; was it saved by another model?",
                path_.string(), name, manifest_.tensors.size());
  }
  const SavedTensor& tensor = found->second;
  const bool widens = tensor.dtype == DType::bf16 && into.dtype() == DType::f32;
  if (tensor.shape != full || (tensor.dtype != into.dtype() && !widens)) {
    throw Error("{}: tensor \"{}\" has shape {} of {}, {} of {} is expected: was it saved by another model?",
                path_.string(), name, tensor.shape, dtype_name(tensor.dtype), full, dtype_name(into.dtype()));
  }
  const Tensor as_saved = widens ? Tensor::empty(into.shape(), tensor.dtype) : into;
  for (const SavedPiece& piece : tensor.pieces) {
    if (!share_elements(piece.box, box)) continue;
    BlockReader reader = open_piece(name, tensor, piece);
    read_shared(reader, piece.box, box, as_saved);
  }
  if (widens) widen_into(into, as_saved);
}

void SavedCheckpoint::verify(std::string_view name, const SavedPiece& piece) {
  open_piece(name, manifest_.tensors.find(name)->second, piece).read_all();
}

BlockReader SavedCheckpoint::open_piece(std::string_view name, const SavedTensor& tensor,
                                        const SavedPiece& piece) try {
  const std::string where = format("{}: tensor \"{}\"", (path_ / piece.file).string(), name);
  const SafetensorsFile& file = open_file(piece.file);
  const StoredTensor* stored = file.find(piece.key);
  if (!stored) throw DamagedCheckpoint(where + " is missing");
  const Shape extents = piece.box.extents();
  if (stored->dtype != safetensors_dtype(tensor.dtype) ||
      !std::ranges::equal(stored->shape, extents.extents())) {
    throw DamagedCheckpoint(format("{} has shape {} of {}, the manifest says {} of {}", where,
                                   std::span(stored->shape), stored->dtype, extents,
                                   safetensors_dtype(tensor.dtype)));
  }
  return {
      file, *stored, [where, &piece](size_t block, std::span<const std::byte> bytes) {
        const uint64_t found = xxh3(bytes);
        if (found == piece.checksums[block]) return;
        const uint64_t begin = block * BlockReader::kBlock;
        throw DamagedCheckpoint(format(
            "{} is damaged: the checksum of its bytes {} to {} is {}, {} was saved", where, grouped(begin),
            grouped(begin + bytes.size()), checksum_text(found), checksum_text(piece.checksums[block])));
      }};
} catch (const DamagedCheckpoint&) {
  throw;
} catch (const Error& e) {
  throw DamagedCheckpoint(format("{} (wanted for tensor \"{}\")", e.what(), name));
}

const SafetensorsFile& SavedCheckpoint::open_file(const std::string& name) {
  const auto known = files_.find(name);
  if (known != files_.end()) return known->second;
  const fs::path path = path_ / name;
  const SavedFile& saved = manifest_.files.at(name);
  const InputFile input(path);
  if (input.size() != saved.bytes) {
    throw Error("{}: it has {} bytes, {} were saved", path.string(), grouped(input.size()),
                grouped(saved.bytes));
  }
  SafetensorsFile file(path);
  std::string header(file.data_begin(), '\0');
  input.read_at(0, std::as_writable_bytes(std::span(header)));
  if (xxh3(header) != saved.header_checksum) {
    throw Error("{}: its header is damaged: the checksum is {}, {} was saved", path.string(),
                checksum_text(xxh3(header)), checksum_text(saved.header_checksum));
  }
  return files_.emplace(name, std::move(file)).first->second;
}

}  // namespace phalanx
