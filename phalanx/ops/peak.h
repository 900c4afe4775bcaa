// The machine's speeds, the yardsticks of every share that is printed.
#pragma once

#include <array>
#include <cstdint>

#include "phalanx/tensor/device.h"
#include "phalanx/tensor/dtype.h"

namespace phalanx {

/// Operations a second (a multiply-add is two) of matmul_nt on n×n matrices with the calling rank's threads,
/// or on its GPU: the best of the runs that fit into `seconds`, at least one after a warm-up. n = 0: 512, on
/// a GPU 8192.
double measure_matmul_flops(DType dtype, Device device = kCpu, int64_t n = 0, double seconds = 0.1);

/// Bytes a second, read and written ones together, of a copy that moves `bytes` with the calling rank's
/// threads, in the faster of two ways: memcpy, and past the caches. The best of the runs that fit into
/// `seconds`.
double measure_large_copy(int64_t bytes, double seconds = 0.1);

/// How fast memory is copied, by how much: small copies stay in caches.
class CopySpeed {
 public:
  /// Measures with the calling rank's threads, copies that move 32 KiB to 128 MiB: for each size the best of
  /// the runs that fit into `seconds`.
  static CopySpeed measure(double seconds = 0.02);
  /// Of a GPU's memory alone: copies that move 2 GiB.
  static CopySpeed measure_gpu(Device device, double seconds = 0.1);

  /// Bytes a second, read and written ones together, of a copy that moves about so many.
  double bytes_per_second(int64_t bytes) const;
  /// The least time in which `bytes` can be read and written.
  double seconds(int64_t bytes) const { return static_cast<double>(bytes) / bytes_per_second(bytes); }
  /// Of the largest copy measured: memory's own speed.
  double of_memory() const { return speeds_.back(); }

 private:
  static constexpr int kFirst = 15;  // 2^15 bytes, then four times as many each
  std::array<double, 7> speeds_{};
};

}  // namespace phalanx
