#include "phalanx/ops/peak.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>

#include "phalanx/base/parallel_for.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/stream_copy.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kGrain = 32 << 10;  // bytes of a copy

double since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

// The shortest time of f() among those that fit into `seconds`, at least one after a warm-up.
template <class F>
double best_time(double seconds, F f) {
  f();
  const auto start = Clock::now();
  double best = 0;
  do {
    const auto begin = Clock::now();
    f();
    const double time = since(begin);
    best = best == 0 ? time : std::min(best, time);
  } while (since(start) < seconds);
  return best;
}

}  // namespace

double measure_matmul_flops(DType dtype, Device device, int64_t n, double seconds) {
  if (n == 0) n = device.is_cuda() ? 8192 : 512;
  const AllocatorScope scope;  // its memory goes back to the system
  const Tensor a = Tensor::zeros({n, n}, dtype, device);
  const Tensor b = Tensor::zeros({n, n}, dtype, device);
  const double time = best_time(seconds, [&] {
    matmul_nt(a, b);
    synchronise(device);
  });
  return 2.0 * static_cast<double>(n * n * n) / time;
}

double measure_large_copy(int64_t bytes, double seconds) {
  const AllocatorScope scope;  // its memory goes back to the system
  const int64_t half = (bytes / 2 + 63) / 64 * 64;
  const Tensor from = Tensor::zeros({half}, DType::u8);
  const Tensor to = Tensor::zeros({half}, DType::u8);
  const auto best = [&](auto copy) {
    return best_time(seconds, [&] {
      parallel_for(half, kGrain, [&](int64_t begin, int64_t end) {
        copy(to.raw() + begin, from.raw() + begin, static_cast<size_t>(end - begin));
        stream_fence();
      });
    });
  };
  const double in_caches = best([](void* t, const void* f, size_t n) { std::memcpy(t, f, n); });
  return 2 * static_cast<double>(half) / std::min(in_caches, best(stream_copy));
}

CopySpeed CopySpeed::measure(double seconds) {
  const AllocatorScope scope;  // its memory goes back to the system
  CopySpeed speed;
  for (size_t i = 0; i < speed.speeds_.size(); ++i) {
    const int64_t moved = int64_t{1} << (kFirst + 2 * static_cast<int>(i));
    const Tensor from = Tensor::zeros({moved / 2}, DType::u8);
    const Tensor to = Tensor::zeros({moved / 2}, DType::u8);
    const double time = best_time(seconds, [&] {
      parallel_for(moved / 2, kGrain, [&](int64_t begin, int64_t end) {
        std::memcpy(to.raw() + begin, from.raw() + begin, static_cast<size_t>(end - begin));
      });
    });
    speed.speeds_[i] = static_cast<double>(moved) / time;
  }
  return speed;
}

CopySpeed CopySpeed::measure_gpu(Device device, double seconds) {
  const AllocatorScope scope;  // its memory goes back to the system
  constexpr int64_t kHalf = int64_t{1} << 30;
  const Tensor from = Tensor::zeros({kHalf}, DType::u8, device);
  const Tensor to = Tensor::zeros({kHalf}, DType::u8, device);
  const double time = best_time(seconds, [&] {
    copy_into(to, from);
    synchronise(device);
  });
  CopySpeed speed;
  speed.speeds_.fill(2.0 * static_cast<double>(kHalf) / time);
  return speed;
}

double CopySpeed::bytes_per_second(int64_t bytes) const {
  const int log = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(bytes, 1)));  // 2^log > bytes
  const auto nearest = std::clamp<int64_t>((log - kFirst) / 2, 0, std::ssize(speeds_) - 1);
  return speeds_[static_cast<size_t>(nearest)];
}

}  // namespace phalanx
