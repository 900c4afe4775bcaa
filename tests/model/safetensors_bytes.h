#pragma once
// Safetensors files made by hand, sound or not.

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

namespace phalanx::testing {

inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline std::string length_of(uint64_t n) {
  std::string s(8, '\0');
  std::memcpy(s.data(), &n, 8);
  return s;
}

inline std::string file_bytes(const std::string& header, const std::string& data) {
  return length_of(header.size()) + header + data;
}

}  // namespace phalanx::testing
