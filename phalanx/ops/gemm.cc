#include "phalanx/ops/gemm.h"

#include <cblas.h>
#include <oneapi/dnnl/dnnl.h>

#include <algorithm>
#include <mutex>
#include <optional>

#include "phalanx/base/check.h"

// Of the OpenMP runtime beneath both libraries. We bring the threads: each of ours computes alone.
extern "C" void omp_set_num_threads(int threads);

namespace phalanx {
namespace {

void compute_alone() {
  thread_local bool alone = false;
  if (!alone) omp_set_num_threads(1);
  alone = true;
}

// True when there is nothing to multiply; then c holds the sum over nothing.
template <class T>
bool finished(const Gemm<T>& g) {
  if (g.m == 0 || g.n == 0) return true;
  if (g.k > 0) return false;
  for (int64_t i = 0; i < g.m && !g.accumulate; ++i) std::fill_n(g.c + i * g.c_stride, g.n, T{0});
  return true;
}

}  // namespace

void gemm(const Gemm<float>& g) {
  if (finished(g)) return;
  compute_alone();
  const dnnl_status_t status =
      dnnl_sgemm(g.a_transposed ? 'T' : 'N', g.b_transposed ? 'T' : 'N', g.m, g.n, g.k, 1.0f, g.a, g.a_stride,
                 g.b, g.b_stride, g.accumulate ? 1.0f : 0.0f, g.c, g.c_stride);
  PHX_CHECK(status == dnnl_success, "dnnl_sgemm {}×{}×{}: status {}", g.m, g.n, g.k,
            static_cast<int>(status));
}

void gemm(const Gemm<double>& g) {
  if (finished(g)) return;
  compute_alone();
  // A build of OpenBLAS without threads gives wrong results when threads call it at once: there, one by one.
  static std::mutex one_by_one;
  static const bool unsafe = [] {
    openblas_set_num_threads(1);  // of its own, in a build with such
    return openblas_get_parallel() == OPENBLAS_SEQUENTIAL;
  }();
  std::optional<std::scoped_lock<std::mutex>> lock;
  if (unsafe) lock.emplace(one_by_one);
  const auto narrow = [](int64_t n) { return static_cast<blasint>(n); };
  cblas_dgemm(CblasRowMajor, g.a_transposed ? CblasTrans : CblasNoTrans,
              g.b_transposed ? CblasTrans : CblasNoTrans, narrow(g.m), narrow(g.n), narrow(g.k), 1.0, g.a,
              narrow(g.a_stride), g.b, narrow(g.b_stride), g.accumulate ? 1.0 : 0.0, g.c, narrow(g.c_stride));
}

}  // namespace phalanx
