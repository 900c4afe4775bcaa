// Products by cuBLASLt. It counts columns first, so each row-major product is asked for as its transpose:
// Y = X·W as Yᵀ = Wᵀ·Xᵀ, where a row-major matrix, read column-major, is its own transpose.
#include <cublasLt.h>

#include <map>
#include <memory>

#include "phalanx/ops/cuda_ops.h"
#include "phalanx/tensor/cuda_check.cuh"
#include "phalanx/tensor/cuda_tensor.h"
#include "phalanx/tensor/stream.h"

namespace phalanx::cuda {
namespace {

constexpr size_t kMostWorkspace = size_t{32} << 20;

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

// What is done to a product before it is written.
enum class Epilogue : uint8_t {
  none,
  bias,           // of n, added to each row
  gelu,           // written as it is beside (aux), and its GELU (tanh) as c
  gelu_bias,      // the same with a bias before
  gelu_backward,  // times GELU's slope (tanh) at aux
};

bool has_bias(Epilogue e) { return e == Epilogue::bias || e == Epilogue::gelu_bias; }
bool has_aux(Epilogue e) { return e >= Epilogue::gelu; }

cublasLtEpilogue_t name_of(Epilogue e) {
  constexpr cublasLtEpilogue_t kNames[] = {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS,
                                           CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
                                           CUBLASLT_EPILOGUE_DGELU};
  return kNames[static_cast<size_t>(e)];
}

// c [m, n] = op(a)·op(b) + beta·c, all row-major; transposed ones are stored [k, m] and [n, k].
struct Product {
  DType dtype;   // of a and b
  DType result;  // of c
  bool transpose_a;
  bool transpose_b;
  bool accumulate;  // what stands in c, or in `also`
  Epilogue epilogue = Epilogue::none;
  int64_t m;
  int64_t n;
  int64_t k;

  auto operator<=>(const Product&) const = default;
};

// [m, k] and [k, n] or their transposes, [m, n]; bias [n]; aux and also [m, n]; the last three where there
// are any.
struct Operands {
  const Tensor& a;
  const Tensor& b;
  const Tensor& c;
  Tensor bias = {};
  Tensor aux = {};
  Tensor also = {};
};

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

// How one product is computed: a function of the product, the GPU and the library's version, never of
// timings.
struct Plan {
  Plan(cublasLtHandle_t handle, const Product& p);

  Operation operation;
  Layout a;
  Layout b;
  Layout c;
  cublasLtMatmulAlgo_t algorithm;
  size_t workspace = 0;
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

Plan::Plan(cublasLtHandle_t handle, const Product& p) : operation(operation_of(p)) {
  a = p.transpose_a ? layout(p.dtype, p.k, p.m) : layout(p.dtype, p.m, p.k);
  b = p.transpose_b ? layout(p.dtype, p.n, p.k) : layout(p.dtype, p.k, p.n);
  c = layout(p.result, p.m, p.n);
  const Preference preference = preference_of(p);
  cublasLtMatmulHeuristicResult_t found;
  int count = 0;
  check(cublasLtMatmulAlgoGetHeuristic(handle, operation.get(), b.get(), a.get(), c.get(), c.get(),
                                       preference.get(), 1, &found, &count),
        "cublasLtMatmulAlgoGetHeuristic");
  if (count == 0)
    throw Error("cuBLASLt has no algorithm for {} [{}, {}]·[{}, {}]", dtype_name(p.dtype), p.m, p.k, p.k,
                p.n);
  algorithm = found.algo;
  workspace = found.workspaceSize;
}

// Each rank (thread) has its own handle and plans. Workspace comes from its stream's pool.
struct Library {
  Handle handle;
  std::map<Product, Plan> plans;

  Library() {
    cublasLtHandle_t out = nullptr;
    check(cublasLtCreate(&out), "cublasLtCreate");
    handle.reset(out);
  }
  const Plan& plan(const Product& p) { return plans.try_emplace(p, handle.get(), p).first->second; }

  static Library& of_this_thread() {
    static thread_local Library library;
    return library;
  }
};

void check_alignment(const Tensor& t) {
  PHX_CHECK(reinterpret_cast<uintptr_t>(t.address()) % alignment(t.dim(1), t.dtype()) == 0,
            "a matrix {} that begins within a row", t.shape());
}

// T is that of the factors alpha and beta.
template <class T>
void run(const Product& p, const Operands& o) {
  const Plan& plan = Library::of_this_thread().plan(p);
  const cublasLtMatmulDesc_t operation = plan.operation.get();
  if (has_bias(p.epilogue)) set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, o.bias.address());
  if (has_aux(p.epilogue)) set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, o.aux.address());
  const Tensor workspace = Tensor::empty({static_cast<int64_t>(plan.workspace)}, DType::u8, o.c.device());
  const T alpha = 1;
  const T beta = p.accumulate ? 1 : 0;
  const std::byte* const added = o.also.defined() ? o.also.address() : o.c.address();
  check(cublasLtMatmul(Library::of_this_thread().handle.get(), operation, &alpha, o.b.address(), plan.b.get(),
                       o.a.address(), plan.a.get(), &beta, added, plan.c.get(), o.c.address(), plan.c.get(),
                       &plan.algorithm, workspace.address(), plan.workspace, current_stream().native()),
        "cublasLtMatmul");
}

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
  if (p.dtype == DType::f64) {
    run<double>(p, o);
  } else {
    run<float>(p, o);
  }
}

}  // namespace

Tensor matmul(const Tensor& x, const Tensor& w) {
  const Tensor y = Tensor::empty({x.dim(0), w.dim(1)}, x.dtype(), x.device());
  cuda::matmul_into(y, x, w, Into::replace);
  return y;
}

void matmul_into(const Tensor& y, const Tensor& x, const Tensor& w, Into into) {
  multiply({.dtype = x.dtype(),
            .result = y.dtype(),
            .transpose_a = false,
            .transpose_b = false,
            .accumulate = into == Into::add,
            .m = x.dim(0),
            .n = w.dim(1),
            .k = w.dim(0)},
           {x, w, y});
}

Tensor matmul_nt(const Tensor& x, const Tensor& w) {
  const Tensor y = Tensor::empty({x.dim(0), w.dim(0)}, x.dtype(), x.device());
  cuda::matmul_nt_into(y, x, w, Into::replace);
  return y;
}

void matmul_nt_into(const Tensor& y, const Tensor& x, const Tensor& w, Into into) {
  multiply({.dtype = x.dtype(),
            .result = y.dtype(),
            .transpose_a = false,
            .transpose_b = true,
            .accumulate = into == Into::add,
            .m = x.dim(0),
            .n = w.dim(0),
            .k = w.dim(1)},
           {x, w, y});
}

void linear_into(const Tensor& y, const Tensor& x, const Tensor& w, const Tensor& b, const Tensor& also) {
  const bool whole = x.dim(1) > 0;
  const bool fused = b.defined() && whole && y.dtype() != DType::f64;  // what cuBLASLt can
  multiply({.dtype = x.dtype(),
            .result = y.dtype(),
            .transpose_a = false,
            .transpose_b = true,
            .accumulate = whole && also.defined(),
            .epilogue = fused ? Epilogue::bias : Epilogue::none,
            .m = x.dim(0),
            .n = w.dim(0),
            .k = w.dim(1)},
           {.a = x, .b = w, .c = y, .bias = b, .also = also});
  if (b.defined() && !fused) add_bias_into(y, b);
  if (also.defined() && !whole) add_into(y, also);
}

bool fuses_gelu(const Tensor& h, Gelu kind) {
  constexpr int64_t kRow = 16 / sizeof(bf16);  // of aux: whole accesses
  return kind == Gelu::tanh && h.dtype() == DType::bf16 && h.dim(1) % kRow == 0;
}

void linear_gelu_into(const GeluRows& out, const Tensor& x, const Tensor& w, const Tensor& b) {
  multiply({.dtype = x.dtype(),
            .result = out.a.dtype(),
            .transpose_a = false,
            .transpose_b = true,
            .accumulate = false,
            .epilogue = b.defined() ? Epilogue::gelu_bias : Epilogue::gelu,
            .m = x.dim(0),
            .n = w.dim(0),
            .k = w.dim(1)},
           {.a = x, .b = w, .c = out.a, .bias = b, .aux = out.h});
}

void matmul_gelu_backward_into(const Tensor& dh, const Tensor& dy, const Tensor& w, const Tensor& h) {
  multiply({.dtype = dy.dtype(),
            .result = dh.dtype(),
            .transpose_a = false,
            .transpose_b = false,
            .accumulate = false,
            .epilogue = Epilogue::gelu_backward,
            .m = dy.dim(0),
            .n = w.dim(1),
            .k = w.dim(0)},
           {.a = dy, .b = w, .c = dh, .aux = h});
}

void matmul_tn_into(const Tensor& dw, const Tensor& dy, const Tensor& x, Into into) {
  multiply({.dtype = x.dtype(),
            .result = dw.dtype(),
            .transpose_a = true,
            .transpose_b = false,
            .accumulate = into == Into::add,
            .m = dy.dim(1),
            .n = x.dim(1),
            .k = dy.dim(0)},
           {dy, x, dw});
}

}  // namespace phalanx::cuda
