// The safetensors file format: a u64 length (little-endian), a JSON header of that length, then the tensors'
// bytes, row-major, without holes. https://github.com/huggingface/safetensors
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "phalanx/base/file.h"
#include "phalanx/model/box.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// Our dtype's name in such files: "F32", "BF16", "F8_E4M3".
std::string_view safetensors_dtype(DType dtype);
/// The reverse; nothing for a dtype that we have no tensors of.
std::optional<DType> dtype_of_safetensors(std::string_view name);

/// A tensor as a file's header tells of it. Its dtype may be one that we do not know, its rank any.
struct StoredTensor {
  std::string name;
  std::string dtype;           // as it stands in the file: "F32"
  std::vector<int64_t> shape;  // outermost first; empty for a scalar
  uint64_t begin = 0;          // of its bytes, [begin, end) counted from the end of the header
  uint64_t end = 0;

  uint64_t bytes() const { return end - begin; }
};

/// Free-form texts that a header may hold.
using SafetensorsMetadata = std::map<std::string, std::string>;

/// A file whose header has been read and found sound: every byte behind it belongs to exactly one tensor. The
/// file is open only while something is read; const members may be called by several threads at once.
class SafetensorsFile {
 public:
  /// Error, naming file and tensor: truncated, trailing bytes, overlaps, holes, a header over 100 MB or that
  /// is not strict JSON, a shape that does not fit its bytes, a size that overflows.
  explicit SafetensorsFile(std::filesystem::path path);

  const std::filesystem::path& path() const { return path_; }
  /// In the order of their bytes.
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  const SafetensorsMetadata& metadata() const { return metadata_; }
  /// Null when there is no tensor of that name.
  const StoredTensor* find(std::string_view name) const;
  /// The same. Error when there is none.
  const StoredTensor& at(std::string_view name) const;
  /// Bytes of the length and the header: where the tensors begin.
  uint64_t data_begin() const { return data_begin_; }
  uint64_t file_bytes() const { return file_bytes_; }

  /// Reads the part of a tensor that `box` names into `into`, whose shape is the box's. Error: another dtype
  /// or rank, a box past the tensor's end.
  void load(const StoredTensor& tensor, const Box& box, Tensor into) const;

 private:
  std::filesystem::path path_;
  uint64_t data_begin_ = 0;
  uint64_t file_bytes_ = 0;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, size_t, std::less<>> by_name_;
  SafetensorsMetadata metadata_;
};

/// A stored tensor's bytes, read upwards in blocks, so that each is read once and can be checked as a whole.
class BlockReader {
 public:
  static constexpr uint64_t kBlock = uint64_t{4} << 20;  // bytes; a tensor's last block may be shorter
  /// Called with every block that was read; throws when it is not what it should be.
  using Check = std::function<void(size_t block, std::span<const std::byte> bytes)>;

  BlockReader(const SafetensorsFile& file, const StoredTensor& tensor, Check check);
  /// Fills `into` with the tensor's bytes from `offset` on; offsets must not fall.
  void read(uint64_t offset, std::span<std::byte> into);
  /// Reads (and so checks) every block.
  void read_all();

 private:
  void fetch(uint64_t block, std::span<std::byte> into);
  uint64_t block_bytes(uint64_t block) const;

  InputFile file_;
  uint64_t begin_;  // in the file
  uint64_t bytes_;
  Check check_;
  std::vector<std::byte> buffer_;  // holds block current_
  std::optional<uint64_t> current_;
};

/// Copies the elements that two boxes of one tensor share: `stored` is what the reader's bytes hold, `wanted`
/// what `into` holds; both row-major, of into's dtype.
void read_shared(BlockReader& reader, const Box& stored, const Box& wanted, Tensor into);

/// A tensor that is going to be written; its offsets follow from the order.
struct TensorToStore {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
};

/// Writes a new file; the tensors' bytes come in the order in which they were announced, in portions of any
/// size.
class SafetensorsWriter {
 public:
  /// Creates the file, claims its room on the disk and writes the header, padded to 8 bytes. Error: it
  /// exists, it cannot be written, the disk is full.
  SafetensorsWriter(std::filesystem::path path, std::span<const TensorToStore> tensors,
                    const SafetensorsMetadata& metadata = {});
  void append(std::span<const std::byte> bytes) { file_.append(bytes); }
  /// Returns when the file is on the disk. All bytes must have come.
  void finish();

  /// The length and the header, as they stand in the file.
  std::string_view header() const { return header_; }
  /// Of the whole file.
  uint64_t file_bytes() const { return file_bytes_; }

 private:
  std::string header_;
  uint64_t file_bytes_;
  OutputFile file_;
};

}  // namespace phalanx
