#include "phalanx/ops/peak.h"

#include <algorithm>
#include <chrono>

#include "phalanx/ops/matmul.h"

namespace phalanx {

double measure_matmul_flops(DType dtype, int64_t n, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
  };
  const Tensor a = Tensor::zeros({n, n}, dtype);
  const Tensor b = Tensor::zeros({n, n}, dtype);
  matmul_nt(a, b);
  const auto start = Clock::now();
  double best = 0;
  do {
    const auto begin = Clock::now();
    matmul_nt(a, b);
    best = std::max(best, 2.0 * static_cast<double>(n * n * n) / since(begin));
  } while (since(start) < seconds);
  return best;
}

}  // namespace phalanx
