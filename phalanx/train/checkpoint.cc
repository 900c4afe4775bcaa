#include "phalanx/train/checkpoint.h"

#include <algorithm>
#include <set>

#include "phalanx/model/safetensors.h"
#include "phalanx/train/agree.h"
#include "phalanx/train/checksum.h"
#include "phalanx/train/saved_checkpoint.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;

// A piece of this rank's file, in the order of the file.
struct PieceToWrite {
  const NamedTensor* tensor;
  std::string key;
};

std::vector<PieceToWrite> pieces_to_write(std::span<const NamedTensor> tensors) {
  std::vector<PieceToWrite> pieces;
  std::set<std::string> keys;
  for (const NamedTensor& t : tensors) {
    PHX_CHECK(t.local.numel() == t.slice.local.numel(), "tensor {}: {} elements for a slice of shape {}",
              t.name, t.local.numel(), t.slice.local);
    if (!t.written_here) continue;
    std::string key = t.name;
    for (int n = 1; !keys.insert(key).second; ++n) key = format("{}@{}", t.name, n);
    pieces.push_back({.tensor = &t, .key = std::move(key)});
  }
  // Wide elements first: then every tensor lies at a multiple of its element size.
  std::ranges::stable_sort(pieces, std::greater(),
                           [](const PieceToWrite& p) { return dtype_size(p.tensor->local.dtype()); });
  return pieces;
}

// Hashes and writes block by block, while a block is in the cache.
std::vector<uint64_t> write_blocks(SafetensorsWriter& writer, const Tensor& tensor) {
  std::vector<uint64_t> checksums;
  const Tensor here = tensor.to(kCpu);
  std::span<const std::byte> rest(here.raw(), here.bytes());
  while (!rest.empty()) {
    const auto block = rest.first(std::min<size_t>(rest.size(), BlockReader::kBlock));
    checksums.push_back(xxh3(block));
    writer.append(block);
    rest = rest.subspan(block.size());
  }
  return checksums;
}

// Writes this rank's file into `directory`; gives its part of the manifest. A rank with nothing to write has
// no file.
Manifest write_shard(const fs::path& directory, std::span<const NamedTensor> tensors, int rank) {
  Manifest mine;
  const std::vector<PieceToWrite> pieces = pieces_to_write(tensors);
  if (pieces.empty()) return mine;
  const std::string file = format("rank-{:05d}.safetensors", rank);
  std::vector<TensorToStore> headers;
  for (const PieceToWrite& p : pieces) {
    headers.push_back({.name = p.key, .dtype = p.tensor->local.dtype(), .shape = p.tensor->slice.local});
  }
  SafetensorsWriter writer(directory / file, headers);
  for (const PieceToWrite& p : pieces) {
    const auto [at, is_new] = mine.tensors.try_emplace(p.tensor->name);
    SavedTensor& saved = at->second;
    const Tensor& local = p.tensor->local;
    const Shape& full = p.tensor->slice.full;
    PHX_CHECK(is_new || (saved.shape == full && saved.dtype == local.dtype()),
              "tensor {}: its parts are of shapes {} and {} or of two dtypes", p.tensor->name, saved.shape,
              full);
    saved.dtype = local.dtype();
    saved.shape = full;
    saved.pieces.push_back({.file = file,
                            .key = p.key,
                            .box = box_of(p.tensor->slice),
                            .checksums = write_blocks(writer, local)});
  }
  writer.finish();
  sync_directory(directory);
  mine.files[file] = {.bytes = writer.file_bytes(), .header_checksum = xxh3(writer.header())};
  return mine;
}

std::string whole_manifest(const CheckpointContents& contents, std::span<const std::string> parts,
                           const std::string& where) {
  Manifest manifest{.step = contents.step,
                    .ranks = static_cast<int>(parts.size()),
                    .layout = contents.layout,
                    .config = contents.config,
                    .state = contents.state,
                    .files = {},
                    .tensors = {}};
  for (const std::string& part : parts) merge_manifest(manifest, parse_manifest(part, where), where);
  check_manifest(manifest, where);
  return manifest_text(manifest);
}

// What is still there after a save that failed.
std::string remaining(const fs::path& dir) {
  const auto latest = find_latest_complete(dir);
  if (!latest) return format("no checkpoint in {} is complete", dir.string());
  return format("{} is complete: use {}", latest->path.filename().string(), latest->path.string());
}

void read_tensors(SavedCheckpoint& saved, std::span<const NamedTensor> wanted) {
  for (const NamedTensor& t : wanted) {
    PHX_CHECK(t.local.numel() == t.slice.local.numel(), "tensor {}: {} elements for a slice of shape {}",
              t.name, t.local.numel(), t.slice.local);
    const Tensor here = t.local.on_cuda() ? Tensor::empty(t.local.shape(), t.local.dtype()) : t.local;
    saved.read(t.name, t.slice.full, box_of(t.slice), here);
    if (t.local.on_cuda()) copy_into(t.local, here);
  }
}

}  // namespace

SavedReport save_checkpoint(const fs::path& dir, const CheckpointContents& contents, Group& world,
                            const SaveOptions& options) {
  const CheckpointInProgress progress(dir, contents.step);
  const bool first = world.rank() == 0;
  SavedReport report{.path = progress.final_path()};
  try {
    all_or_none(world, [&] {
      if (first) progress.begin();
    });
    Manifest mine;
    all_or_none(world, [&] { mine = write_shard(progress.path(), contents.tensors, world.rank()); });
    for (const auto& [name, file] : mine.files) report.bytes += file.bytes;
    const std::vector<std::string> parts = gather_texts(world, manifest_text(mine));
    all_or_none(world, [&] {
      if (first) progress.publish(whole_manifest(contents, parts, report.path.string()));
    });
  } catch (const CommError&) {
    throw;  // a rank is gone: what is unfinished is left to the next save
  } catch (const Error& e) {
    if (first) progress.discard();
    throw Error("checkpoint {} was not saved: {}; {}", report.path.string(), e.what(), remaining(dir));
  }
  if (first) report.note = prune_checkpoints(dir, contents.step, options.keep_last);
  return report;
}

LoadedCheckpoint load_checkpoint(const fs::path& path, std::span<const NamedTensor> wanted, Group& world) {
  LatestCheckpoint found;
  all_or_none(world, [&] {
    if (world.rank() == 0) found = resolve_checkpoint(path);
  });
  found.path = broadcast_text(world, found.path.string(), 0);
  found.note = broadcast_text(world, found.note, 0);
  LoadedCheckpoint loaded{.path = found.path, .note = found.note};
  all_or_none(world, [&] {
    try {
      SavedCheckpoint saved(found.path);
      if (world.rank() == 0) saved.check_files();
      read_tensors(saved, wanted);
      loaded.step = saved.manifest().step;
      loaded.layout = saved.manifest().layout;
      loaded.config = saved.manifest().config;
      loaded.state = saved.manifest().state;
    } catch (const DamagedCheckpoint& e) {
      throw Error("{}; {}", e.what(), advice_instead_of(found.path));
    }
  });
  return loaded;
}

}  // namespace phalanx
