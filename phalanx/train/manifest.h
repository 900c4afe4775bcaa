// What a checkpoint's manifest.json says: which tensors there are, and where every piece of them lies.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "phalanx/model/box.h"
#include "phalanx/tensor/tensor.h"
#include "phalanx/train/trainer_state.h"

namespace phalanx {

/// Part of a tensor as one rank wrote it.
struct SavedPiece {
  std::string file;                 // beside the manifest
  std::string key;                  // its name in that file
  Box box;                          // of the full tensor
  std::vector<uint64_t> checksums;  // xxh3 of each BlockReader::kBlock of its bytes
};

/// A tensor; its pieces hold every element once.
struct SavedTensor {
  DType dtype = DType::f32;
  Shape shape;
  std::vector<SavedPiece> pieces;

  uint64_t piece_bytes(const SavedPiece& piece) const {
    return static_cast<uint64_t>(piece.box.volume()) * dtype_size(dtype);
  }
};

struct SavedFile {
  uint64_t bytes = 0;
  uint64_t header_checksum = 0;  // xxh3 of the file up to its first tensor
};

struct Manifest {
  int64_t step = 0;
  int ranks = 1;
  std::string layout;  // of the ranks that saved: "dp=2,ep=2"
  std::string config;  // TOML
  TrainerState state;
  std::map<std::string, SavedFile> files;
  std::map<std::string, SavedTensor, std::less<>> tensors;
};

/// JSON whose last member is a checksum of everything before it.
std::string manifest_text(const Manifest& manifest);
/// The reverse; `where` (a file) begins the messages. Error: not such a text, damaged, another version.
Manifest parse_manifest(std::string_view text, const std::string& where);
/// Adds another rank's files and pieces. Error when they do not fit: another dtype or shape of a tensor.
void merge_manifest(Manifest& into, Manifest part, const std::string& where);
/// Error unless every tensor's pieces hold each of its elements once, in files that are listed.
void check_manifest(const Manifest& manifest, const std::string& where);

}  // namespace phalanx
