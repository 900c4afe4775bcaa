// What a checkpoint costs beside writing and reading the same bytes plainly: 2 ranks of 256 MiB each, files
// in the directory given (or the system's for temporary files). Interleaved, medians of 5.
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>

#include "bench/report.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/train/checkpoint.h"
#include "phalanx/train/checksum.h"

namespace phalanx::bench {
namespace {

namespace fs = std::filesystem;

constexpr int kRanks = 2;
constexpr int kTensors = 16;
constexpr int64_t kRows = 4096;  // of 4 KiB in each tensor: 16 MiB
constexpr size_t kPortion = size_t{4} << 20;

double median(std::vector<double> v) {
  std::ranges::nth_element(v, v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2));
  return v[v.size() / 2];
}

// KiB, from /proc/self/status: the most that was resident since the last reset.
int64_t peak_resident() {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6));
  }
  return 0;
}
void reset_peak_resident() { std::ofstream("/proc/self/clear_refs") << "5"; }

std::vector<NamedTensor> tensors_of(int rank) {
  std::vector<NamedTensor> tensors;
  for (int i = 0; i < kTensors; ++i) {
    const Shape full{kRanks * kRows, 1024};
    const Tensor local = Tensor::empty({kRows, 1024}, DType::f32);
    for (int64_t k = 0; k < local.numel(); ++k)
      local.data<float>()[k] = static_cast<float>(k * (i + 1) % 1009);
    tensors.push_back({.name = "tensor." + std::to_string(i),
                       .local = local,
                       .slice = {.full = full, .local = local.shape(), .begin = {rank * kRows, 0}}});
  }
  return tensors;
}

void write_plainly(const fs::path& path, const std::vector<NamedTensor>& tensors) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  for (const NamedTensor& t : tensors) {
    for (size_t at = 0; at < t.local.bytes(); at += kPortion) {
      PHX_CHECK(::write(fd, t.local.raw() + at, kPortion) == static_cast<ssize_t>(kPortion), "write");
    }
  }
  PHX_CHECK(::fsync(fd) == 0, "fsync");
  ::close(fd);
}

void read_plainly(const fs::path& path, const std::vector<NamedTensor>& tensors) {
  const int fd = ::open(path.c_str(), O_RDONLY);
  for (const NamedTensor& t : tensors) {
    for (size_t at = 0; at < t.local.bytes(); at += kPortion) {
      PHX_CHECK(::read(fd, t.local.raw() + at, kPortion) == static_cast<ssize_t>(kPortion), "read");
    }
  }
  ::close(fd);
}

void measure(Group& world, const fs::path& dir, Report& report) {
  const std::vector<NamedTensor> tensors = tensors_of(world.rank());
  const CheckpointContents contents{.step = 1, .tensors = tensors};
  const fs::path plain = dir / ("plain-" + std::to_string(world.rank()));
  uint64_t sink = 0;
  const std::vector<std::pair<std::string, std::function<void()>>> cases = {
      {"write and fsync", [&] { write_plainly(plain, tensors); }},
      {"save_checkpoint", [&] { save_checkpoint(dir / "run", contents, world); }},
      {"checksum",
       [&] {
         for (const NamedTensor& t : tensors) sink += xxh3({t.local.raw(), t.local.bytes()});
       }},
      {"read (cached)", [&] { read_plainly(plain, tensors); }},
      {"load_checkpoint (cached)", [&] { load_checkpoint(dir / "run", tensors, world); }},
  };
  std::map<std::string, std::vector<double>> seconds;
  std::map<std::string, int64_t> extra;
  for (int round = 0; round < 5; ++round) {
    for (const auto& [name, run] : cases) {
      world.barrier().wait();
      if (world.rank() == 0) reset_peak_resident();
      const int64_t before = peak_resident();
      world.barrier().wait();
      const auto start = std::chrono::steady_clock::now();
      run();
      world.barrier().wait();
      seconds[name].push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      extra[name] = std::max(extra[name], peak_resident() - before);
    }
  }
  if (world.rank() != 0) return;
  for (const auto& [name, run] : cases) {
    const double s = median(seconds[name]);
    report.add({{"what", name},
                {"s", s},
                {"GB/s", kRanks * kTensors * kRows * 4096.0 / s / 1e9},
                {"extra MiB", static_cast<double>(extra[name]) / 1024}});
  }
  PHX_CHECK(sink != 1, "so that the checksums are not left out");
}

int run(std::span<char*> arguments) {
  fs::path base = fs::temp_directory_path();
  if (arguments.size() > 1 && arguments[1][0] != '-') base = arguments[1];
  const fs::path dir = base / ("phalanx-bench-" + std::to_string(::getpid()));
  fs::create_directories(dir);
  Report report("checkpoint");
  run_thread_ranks({.ranks = kRanks}, [&](Group& world) { measure(world, dir, report); });
  fs::remove_all(dir);
  return report.finish(arguments);
}

}  // namespace
}  // namespace phalanx::bench

int main(int argc, char** argv) { return phalanx::bench::run({argv, static_cast<size_t>(argc)}); }
