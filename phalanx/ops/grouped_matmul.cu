// Grouped products: bf16 by grouped_wgmma.cuh where it can be; else by a plain kernel, the oracle, which sums
// in f32 (f64 of f64) in the order of the terms.
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/grouped_schedule.cuh"
#include "phalanx/ops/grouped_wgmma.h"
#include "phalanx/tensor/cuda_tensor.h"

namespace phalanx::cuda {
namespace {

constexpr int kTile = 64;   // rows and columns of a block's tile
constexpr int kDepth = 16;  // terms that are in shared memory at once
constexpr int kSide = 16;   // threads along each side of the tile
constexpr int kEach = kTile / kSide;
constexpr int kThreads = kSide * kSide;

// A matrix in memory, as one of a product's factors: element (i, l) of a, (j, l) of b, where l counts terms.
template <class T>
struct Factor {
  const T* at;
  int64_t row;   // elements from i to i + 1
  int64_t term;  // from l to l + 1
  int64_t rows;  // that are there
};

template <class T>
using Staged = Arithmetic<T>[kDepth][kTile + 1];

// Terms [first, first + kDepth) of kTile rows; zero where there are none. Neighbouring threads read
// neighbouring elements.
template <class T>
__device__ void stage(Staged<T>& to, const Factor<T>& f, int64_t row, int64_t first, int64_t terms) {
  const int t = threadIdx.y * kSide + threadIdx.x;
  for (int i = t; i < kTile * kDepth; i += kThreads) {
    const int r = f.term == 1 ? i / kDepth : i % kTile;
    const int l = f.term == 1 ? i % kDepth : i / kTile;
    const bool there = row + r < f.rows && first + l < terms;
    to[l][r] = there ? widen(f.at[(row + r) * f.row + (first + l) * f.term]) : Arithmetic<T>(0);
  }
}

// c [.., n] (+)= a·bᵀ: rows and columns of the tile at (row, column). All threads of the block call it.
template <class T, class G>
__device__ void multiply_tile(const Factor<T>& a, const Factor<T>& b, int64_t terms, int64_t row,
                              int64_t column, G* c, bool add) {
  using A = Arithmetic<T>;
  __shared__ Staged<T> as;
  __shared__ Staged<T> bs;
  A sums[kEach][kEach] = {};
  for (int64_t first = 0; first < terms; first += kDepth) {
    __syncthreads();  // what was staged before has been read
    stage(as, a, row, first, terms);
    stage(bs, b, column, first, terms);
    __syncthreads();
    for (int l = 0; l < kDepth; ++l) {
      for (int i = 0; i < kEach; ++i) {
        for (int j = 0; j < kEach; ++j)
          sums[i][j] = fma(as[l][threadIdx.y + i * kSide], bs[l][threadIdx.x + j * kSide], sums[i][j]);
      }
    }
  }
  for (int i = 0; i < kEach; ++i) {
    for (int j = 0; j < kEach; ++j) {
      const int64_t r = row + threadIdx.y + i * kSide;
      const int64_t k = column + threadIdx.x + j * kSide;
      if (r >= a.rows || k >= b.rows) continue;
      G& to = c[r * b.rows + k];
      to = narrow<G>(static_cast<Arithmetic<G>>(add ? sums[i][j] + widen(to) : sums[i][j]));
    }
  }
}

struct Sizes {
  const int64_t* offsets;
  int64_t experts;
  int64_t capacity;
  int64_t m;  // of tn
  int64_t n;
  int64_t k;  // of nn and nt
  Fault* fault;
};

// By the first block: offsets that fit no rows are reported. The others take what is within the rows.
__device__ void check_offsets(const Sizes& s) {
  if (blockIdx.x != 0 || blockIdx.y != 0 || blockIdx.z != 0) return;
  for (int64_t e = threadIdx.y * kSide + threadIdx.x; e < s.experts; e += kThreads) {
    const int64_t begin = s.offsets[e];
    const int64_t end = s.offsets[e + 1];
    if (begin < 0 || begin > end || end > s.capacity)
      report(s.fault, FaultKind::offset, end < begin ? begin : end, s.capacity);
  }
}

__device__ int64_t offset(const Sizes& s, int64_t e) {
  return min(max(s.offsets[e], int64_t{0}), s.capacity);
}

// Block x has rows [x·kTile, …) of x, which may be several experts', y the columns.
template <Form F, class T>
__global__ void forward(Sizes s, const T* x, const T* w, T* y) {
  check_offsets(s);
  const int64_t first = int64_t{blockIdx.x} * kTile;
  int64_t e = 0;
  for (int64_t above = s.experts; e < above;) {  // the first expert that ends behind it
    const int64_t middle = (e + above) / 2;
    if (offset(s, middle + 1) > first) {
      above = middle;
    } else {
      e = middle + 1;
    }
  }
  for (; e < s.experts && offset(s, e) < min(first + kTile, s.capacity); ++e) {
    const int64_t begin = max(offset(s, e), first);
    const int64_t end = min(offset(s, e + 1), first + kTile);
    if (begin >= end) continue;
    const Factor<T> a = {x + begin * s.k, s.k, 1, end - begin};
    const T* const we = w + e * s.n * s.k;
    const Factor<T> b = {we, F == Form::nt ? s.k : 1, F == Form::nt ? 1 : s.n, s.n};
    multiply_tile(a, b, s.k, 0, int64_t{blockIdx.y} * kTile, y + begin * s.n, false);
  }
}

// Blocks x and y have rows and columns of expert z's result.
template <class T, class G>
__global__ void weight_gradient(Sizes s, const T* dy, const T* x, G* dw, bool add) {
  check_offsets(s);
  const int64_t e = blockIdx.z;
  const int64_t begin = offset(s, e);
  const int64_t terms = max(offset(s, e + 1) - begin, int64_t{0});
  const Factor<T> a = {dy + begin * s.m, 1, s.m, s.m};
  const Factor<T> b = {x + begin * s.n, 1, s.n, s.n};
  multiply_tile(a, b, terms, int64_t{blockIdx.x} * kTile, int64_t{blockIdx.y} * kTile, dw + e * s.m * s.n,
                add);
}

// TMA reads rows of whole 16 bytes and counts elements in 32 bits.
bool wgmma_takes(const GroupedProduct& p) {
  bool takes = p.a.dtype() == DType::bf16 && p.offsets.numel() - 1 <= kMostGroupedExperts;
  for (const Tensor* t : {&p.a, &p.b, &p.c}) {
    const int64_t columns = t->dim(t->shape().rank() - 1);
    takes = takes && columns > 0 && columns % 8 == 0 && t->rows() > 0 && t->rows() < (1 << 30) &&
            columns < (1 << 30) && reinterpret_cast<uintptr_t>(t->address()) % 16 == 0;
  }
  return takes;
}

Sizes sizes_of(const GroupedProduct& p) {
  return {.offsets = p.offsets.device_data<int64_t>(),
          .experts = p.offsets.numel() - 1,
          .capacity = p.a.rows(),
          .m = 0,
          .n = 0,
          .k = 0,
          .fault = current_stream().fault()};
}

void check_operands(const GroupedProduct& p, const Tensor& w) {
  PHX_CHECK(p.offsets.numel() == w.dim(0) + 1, "{} offsets of {} experts", p.offsets.numel(), w.dim(0));
  PHX_CHECK(p.a.dtype() == p.b.dtype(), "a product of {} and {}", dtype_name(p.a.dtype()),
            dtype_name(p.b.dtype()));
}

template <Form F>
Rows multiply(const Rows& x, const Tensor& w, const Tensor& offsets) {
  const Rows y = rows_like(x, {0, w.dim(F == Form::nt ? 1 : 2)}, x.data.dtype());
  const GroupedProduct p = {x.data, w, y.data, offsets, Into::replace};
  check_operands(p, w);
  if (y.data.numel() == 0 || w.dim(0) == 0) return y;
  if (wgmma_takes(p) && (F == Form::nt ? grouped_wgmma_nt(p) : grouped_wgmma_nn(p))) return y;
  Sizes s = sizes_of(p);
  s.n = y.data.dim(1);
  s.k = x.data.dim(1);
  const dim3 grid(blocks_for(s.capacity, kTile), blocks_for(s.n, kTile));
  visit_stored(y.data.dtype(), [&](auto zero) {
    using T = decltype(zero);
    forward<F, T><<<grid, dim3(kSide, kSide), 0, current_stream().native()>>>(
        s, x.data.device_data<T>(), w.device_data<T>(), y.data.device_data<T>());
    check_launch("grouped_matmul");
  });
  return y;
}

}  // namespace

Rows grouped_matmul(const Rows& x, const Tensor& w, const Tensor& offsets) {
  return multiply<Form::nn>(x, w, offsets);
}

Rows grouped_matmul_nt(const Rows& x, const Tensor& w, const Tensor& offsets) {
  return multiply<Form::nt>(x, w, offsets);
}

void grouped_matmul_tn_into(const Tensor& dw, const Rows& dy, const Rows& x, const Tensor& offsets,
                            Into into) {
  const GroupedProduct p = {dy.data, x.data, dw, offsets, into};
  check_operands(p, dw);
  if (dw.numel() == 0) return;
  const bool f32 = dw.dtype() == DType::f32;
  if (wgmma_takes(p) && (f32 || dw.dtype() == DType::bf16) &&
      (f32 ? grouped_wgmma_tn_f32(p) : grouped_wgmma_tn_bf16(p)))
    return;
  Sizes s = sizes_of(p);
  s.capacity = std::min(dy.capacity(), x.capacity());
  s.m = dw.dim(1);
  s.n = dw.dim(2);
  const dim3 grid(blocks_for(s.m, kTile), blocks_for(s.n, kTile), static_cast<unsigned>(s.experts));
  visit_stored(p.a.dtype(), [&](auto zero) {
    using T = decltype(zero);
    visit_sum<T>(dw.dtype(), [&](auto sum) {
      using G = decltype(sum);
      weight_gradient<T, G><<<grid, dim3(kSide, kSide), 0, current_stream().native()>>>(
          s, dy.data.device_data<T>(), x.data.device_data<T>(), dw.device_data<G>(), into == Into::add);
      check_launch("grouped_matmul_tn_into");
    });
  });
}

}  // namespace phalanx::cuda
