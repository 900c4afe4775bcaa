// cuBLASLt counts columns first, so each row-major product is asked for as its transpose: Y = X·W as
// Yᵀ = Wᵀ·Xᵀ, where a row-major matrix, read column-major, is its own transpose.
#include "phalanx/ops/cublaslt.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <vector>

#include "phalanx/base/median.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/lent.h"
#include "phalanx/tensor/cuda_check.cuh"
#include "phalanx/tensor/cuda_tensor.h"
#include "phalanx/tensor/stream.h"

namespace phalanx::cuda {
namespace {

constexpr size_t kMostWorkspace = size_t{32} << 20;

using cuda::check;  // of CUDA's calls
void check(cublasStatus_t status, std::string_view call) {
  if (status != CUBLAS_STATUS_SUCCESS) throw Error("{}: {}", call, cublasLtGetStatusString(status));
}

// A cuBLASLt object, destroyed by D.
template <class T, cublasStatus_t (*D)(T)>
struct Destroy {
  using pointer = T;
  void operator()(T object) const { (void)D(object); }
};
template <class T, cublasStatus_t (*D)(T)>
using Owned = std::unique_ptr<T, Destroy<T, D>>;
using Handle = Owned<cublasLtHandle_t, cublasLtDestroy>;
using Operation = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

bool has_bias(Epilogue e) { return e == Epilogue::bias || e == Epilogue::gelu_bias; }
bool has_aux(Epilogue e) { return e >= Epilogue::gelu; }

cublasLtEpilogue_t name_of(Epilogue e) {
  constexpr cublasLtEpilogue_t kNames[] = {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS,
                                           CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
                                           CUBLASLT_EPILOGUE_DGELU};
  return kNames[static_cast<size_t>(e)];
}

cudaDataType_t type_of(DType dtype) {
  if (dtype == DType::f64) return CUDA_R_64F;
  if (dtype == DType::bf16) return CUDA_R_16BF;
  PHX_CHECK(dtype == DType::f32, "a product of {}", dtype_name(dtype));
  return CUDA_R_32F;
}

Layout layout(DType dtype, int64_t rows, int64_t columns) {
  cublasLtMatrixLayout_t out = nullptr;
  check(cublasLtMatrixLayoutCreate(&out, type_of(dtype), static_cast<uint64_t>(columns),
                                   static_cast<uint64_t>(rows), columns),
        "cublasLtMatrixLayoutCreate");
  return Layout(out);
}

using Found = cublasLtMatmulHeuristicResult_t;

// How one product is computed: a function of the product, the GPU and the library's version, never of
// timings unless products are tuned.
struct Plan {
  explicit Plan(const Product& p);

  Operation operation;
  Layout a;
  Layout b;
  Layout c;
  Found chosen = {};
};

// The alignment that rows of a [rows, columns] matrix have wherever it begins in a buffer of such rows; no
// kernel wants more than 16 bytes.
uint32_t alignment(int64_t columns, DType dtype) {
  uint32_t bytes = 16;
  while (columns * static_cast<int64_t>(dtype_size(dtype)) % bytes != 0) bytes /= 2;
  return bytes;
}

template <class T>
void set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  check(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)),
        "cublasLtMatmulDescSetAttribute");
}

Operation operation_of(const Product& p) {
  const bool f64 = p.dtype == DType::f64;
  cublasLtMatmulDesc_t out = nullptr;
  check(cublasLtMatmulDescCreate(&out, f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                 f64 ? CUDA_R_64F : CUDA_R_32F),
        "cublasLtMatmulDescCreate");
  Operation operation(out);
  const auto transposes = [](bool yes) { return yes ? CUBLAS_OP_T : CUBLAS_OP_N; };
  set(out, CUBLASLT_MATMUL_DESC_TRANSA, transposes(p.transpose_b));  // cuBLASLt's a is our b
  set(out, CUBLASLT_MATMUL_DESC_TRANSB, transposes(p.transpose_a));
  set(out, CUBLASLT_MATMUL_DESC_EPILOGUE, name_of(p.epilogue));
  if (has_aux(p.epilogue)) set(out, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p.n);
  return operation;
}

Preference preference_of(const Product& p) {
  cublasLtMatmulPreference_t out = nullptr;
  check(cublasLtMatmulPreferenceCreate(&out), "cublasLtMatmulPreferenceCreate");
  Preference preference(out);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check(cublasLtMatmulPreferenceSetAttribute(out, attribute, &value, sizeof(value)),
          "cublasLtMatmulPreferenceSetAttribute");
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kMostWorkspace);
  const uint32_t of_c = alignment(p.n, p.result);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(p.transpose_b ? p.k : p.n, p.dtype));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(p.transpose_a ? p.m : p.k, p.dtype));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_c);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_c);
  return preference;
}

Plan::Plan(const Product& p)
    : operation(operation_of(p)),
      a(p.transpose_a ? layout(p.dtype, p.k, p.m) : layout(p.dtype, p.m, p.k)),
      b(p.transpose_b ? layout(p.dtype, p.n, p.k) : layout(p.dtype, p.k, p.n)),
      c(layout(p.result, p.m, p.n)) {}

// Times of the GPU.
class Timer {
 public:
  Timer() {
    for (cudaEvent_t& event : events_) check(cudaEventCreate(&event), "cudaEventCreate");
  }
  ~Timer() {
    for (const cudaEvent_t event : events_) (void)cudaEventDestroy(event);
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  /// Milliseconds that the GPU takes for what f starts; the host waits.
  template <class F>
  double time(F f) const {
    CUstream_st* const stream = current_stream().native();
    check(cudaEventRecord(events_[0], stream), "cudaEventRecord");
    f();
    check(cudaEventRecord(events_[1], stream), "cudaEventRecord");
    check(cudaEventSynchronize(events_[1]), "cudaEventSynchronize");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, events_[0], events_[1]), "cudaEventElapsedTime");
    return ms;
  }

 private:
  std::array<cudaEvent_t, 2> events_ = {};
};

// Algorithms for the product, likely the best first; so many at most.
std::vector<Found> candidates(cublasLtHandle_t handle, const Product& p, const Plan& plan, int most) {
  const Preference preference = preference_of(p);
  std::vector<Found> found(static_cast<size_t>(most));
  int count = 0;
  check(cublasLtMatmulAlgoGetHeuristic(handle, plan.operation.get(), plan.b.get(), plan.a.get(), plan.c.get(),
                                       plan.c.get(), preference.get(), most, found.data(), &count),
        "cublasLtMatmulAlgoGetHeuristic");
  found.resize(static_cast<size_t>(count));
  std::erase_if(found, [](const Found& f) { return f.state != CUBLAS_STATUS_SUCCESS; });
  if (found.empty())
    throw Error("cuBLASLt has no algorithm for {} [{}, {}]·[{}, {}]", dtype_name(p.dtype), p.m, p.k, p.k,
                p.n);
  return found;
}

// Each rank (thread) has its own handle and plans, lent to it. Workspace comes from its stream's pool.
class Library {
 public:
  Library() {
    cublasLtHandle_t out = nullptr;
    check(cublasLtCreate(&out), "cublasLtCreate");
    handle_.reset(out);
  }
  void rest() { set_tuning(false); }

  void set_tuning(bool on) {
    if (tuning_ != on) plans_.clear();
    tuning_ = on;
  }
  void run(const Product& p, const Operands& o) {
    auto at = plans_.find(p);
    if (at == plans_.end()) {
      Plan plan(p);
      plan.chosen = tuning_ ? fastest(p, plan, o) : candidates(handle_.get(), p, plan, 1)[0];
      at = plans_.emplace(p, std::move(plan)).first;
    }
    start(p, at->second, at->second.chosen, o);
  }

 private:
  void start(const Product& p, const Plan& plan, const Found& how, const Operands& o) const;
  Found fastest(const Product& p, const Plan& plan, const Operands& o) const;

  Handle handle_;
  std::map<Product, Plan> plans_;
  bool tuning_ = false;
};

void Library::start(const Product& p, const Plan& plan, const Found& how, const Operands& o) const {
  const cublasLtMatmulDesc_t operation = plan.operation.get();
  if (has_bias(p.epilogue)) set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, o.bias.address());
  if (has_aux(p.epilogue)) set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, o.aux.address());
  const Tensor workspace = Tensor::empty({static_cast<int64_t>(how.workspaceSize)}, DType::u8, o.c.device());
  const bool f64 = p.dtype == DType::f64;  // then the factors are, too
  const std::array<float, 2> factors = {1, p.accumulate ? 1.F : 0.F};
  const std::array<double, 2> wide_factors = {1, p.accumulate ? 1. : 0.};
  const void* const alpha = f64 ? static_cast<const void*>(wide_factors.data()) : factors.data();
  const void* const beta = f64 ? static_cast<const void*>(&wide_factors[1]) : &factors[1];
  const std::byte* const added = o.also.defined() ? o.also.address() : o.c.address();
  check(cublasLtMatmul(handle_.get(), operation, alpha, o.b.address(), plan.b.get(), o.a.address(),
                       plan.a.get(), beta, added, plan.c.get(), o.c.address(), plan.c.get(), &how.algo,
                       workspace.address(), how.workspaceSize, current_stream().native()),
        "cublasLtMatmul");
  queued("a product by cuBLASLt");
}

// Of the likely ones, by the median of some runs of each, in turns. What c holds stays.
Found Library::fastest(const Product& p, const Plan& plan, const Operands& o) const {
  constexpr int kMost = 8;
  constexpr int kRuns = 7;
  const std::vector<Found> all = candidates(handle_.get(), p, plan, kMost);
  const bool overwrites = !p.accumulate || o.also.defined();
  const Tensor c = overwrites ? o.c : Tensor::empty(o.c.shape(), o.c.dtype(), o.c.device());
  const Operands scratch = {.a = o.a, .b = o.b, .c = c, .bias = o.bias, .aux = o.aux, .also = o.also};
  std::vector<std::vector<double>> times(all.size());
  const Timer timer;
  for (int run = -1; run < kRuns; ++run) {
    for (size_t i = 0; i < all.size(); ++i) {
      const double ms = timer.time([&] { start(p, plan, all[i], scratch); });
      if (run >= 0) times[i].push_back(ms);
    }
  }
  size_t best = 0;
  for (size_t i = 1; i < all.size(); ++i) {
    if (median(times[i]) < median(times[best])) best = i;
  }
  return all[best];
}

void check_alignment(const Tensor& t) {
  PHX_CHECK(reinterpret_cast<uintptr_t>(t.address()) % alignment(t.dim(1), t.dtype()) == 0,
            "a matrix {} that begins within a row", t.shape());
}

}  // namespace

void multiply(const Product& p, const Operands& o) {
  const auto& [a, b, c, bias, aux, also] = o;
  const bool fits = p.result == p.dtype || (p.dtype == DType::bf16 && p.result == DType::f32);
  PHX_CHECK(a.dtype() == p.dtype && b.dtype() == p.dtype && fits, "a product of {} and {} in {}",
            dtype_name(a.dtype()), dtype_name(b.dtype()), dtype_name(p.result));
  if (p.m == 0 || p.n == 0 || (p.k == 0 && p.accumulate)) return;
  if (p.k == 0) return zero(c);
  for (const Tensor* t : {&a, &b, &c, &aux, &also}) {
    if (t->defined()) check_alignment(*t);
  }
  Lent<Library>::of_this_thread().run(p, o);
}

void tune_products(bool on) { Lent<Library>::of_this_thread().set_tuning(on); }

}  // namespace phalanx::cuda
