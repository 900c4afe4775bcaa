// Files that last: written beside, synced, renamed, the directory synced. Errors name the file and the
// system's reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx {

/// A file opened for reading at any place. Const members may be called by several threads at once.
class InputFile {
 public:
  /// Error when it cannot be opened or is not a regular file.
  explicit InputFile(std::filesystem::path path);
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;
  ~InputFile();

  const std::filesystem::path& path() const { return path_; }
  /// Bytes, as of when it was opened.
  uint64_t size() const { return size_; }
  /// Fills `into` with the bytes from `offset` on. Error when the file ends before.
  void read_at(uint64_t offset, std::span<std::byte> into) const;

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

/// A new file that grows at its end. Small writes are gathered, large ones go straight to the system. One
/// that is destroyed before finish() may hold any part of what was appended.
class OutputFile {
 public:
  /// Error when it cannot be created or exists already.
  explicit OutputFile(std::filesystem::path path);
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile();

  const std::filesystem::path& path() const { return path_; }
  /// Bytes appended so far.
  uint64_t size() const { return size_; }
  /// Claims room for `bytes` in all, so that a full disk is found before anything is written (and large files
  /// reach the disk sooner); does nothing where the file system cannot. Error: no room.
  void reserve(uint64_t bytes);
  void append(std::span<const std::byte> bytes);
  void append(std::string_view text) { append(std::as_bytes(std::span(text))); }
  /// Returns when the file's bytes are on the disk; nothing may be appended after. (Its name lasts only when
  /// the directory has been synced.)
  void finish();

 private:
  void flush();
  void write_through(std::span<const std::byte> bytes);

  std::filesystem::path path_;
  int fd_ = -1;
  uint64_t size_ = 0;     // appended
  uint64_t written_ = 0;  // given to the system
  std::vector<std::byte> gathered_;
};

/// The whole text of a file. Error when it cannot be read or has more than `limit` bytes.
std::string read_text(const std::filesystem::path& path, uint64_t limit);
/// Writes a new file, its bytes on the disk on return.
void write_new_file(const std::filesystem::path& path, std::string_view text);
/// Writes a file, over what was there.
void write_over(const std::filesystem::path& path, std::string_view text);
/// Error when a file of that name could not be written now. For results that follow long work. Leaves
/// everything as it was.
void check_can_write(const std::filesystem::path& path);
/// Makes one directory (its parents must exist). Error when it exists already.
void make_directory(const std::filesystem::path& path);
/// Renames within one file system, over an existing file (not over a directory that holds anything). Lasts
/// once the parents are synced.
void rename_path(const std::filesystem::path& from, const std::filesystem::path& to);
/// Returns when the names in a directory are on the disk.
void sync_directory(const std::filesystem::path& path);

}  // namespace phalanx
