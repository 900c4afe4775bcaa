#include "phalanx/ops/matmul.h"

#include <algorithm>
#include <type_traits>

#include "phalanx/base/function_ref.h"
#include "phalanx/base/parallel_for.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/gemm.h"
#include "phalanx/ops/transpose.h"

namespace phalanx {
namespace {

// A product is cut into tiles of c, each computed by one call on one thread. Cuts depend on the sizes alone,
// so that bits do not depend on the number of threads.
struct Cut {
  int64_t rows;  // of a tile
  int64_t columns;

  int64_t down(int64_t m) const { return (m + rows - 1) / rows; }
  int64_t across(int64_t n) const { return (n + columns - 1) / columns; }
};

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

constexpr int64_t kTileOperations = 1 << 21;  // about 20 µs of a core: a hundred times the cost of a task

// Tiles keep whole rows of c where they can, 64 to 256 of them: fewer would pack b too often. Few rows are
// cut by columns, in multiples of the library's widest kernel.
Cut cut(int64_t m, int64_t n, int64_t k) {
  const int64_t most = std::max<int64_t>(1, 2 * m * n * std::max<int64_t>(k, 1) / kTileOperations);
  const int64_t down = std::min(most, std::clamp<int64_t>(m / 64, 1, std::max<int64_t>(8, m / 256)));
  const int64_t across = down > 1 ? 1 : std::min(most, std::clamp<int64_t>(n / 192, 1, 16));
  return {round_up(std::max<int64_t>(1, (m + down - 1) / down), 16),
          round_up(std::max<int64_t>(1, (n + across - 1) / across), 48)};
}

template <class T>
Gemm<T> tile_of(const Gemm<T>& g, Cut c, int64_t index) {
  const int64_t row = index / c.across(g.n) * c.rows;
  const int64_t column = index % c.across(g.n) * c.columns;
  Gemm<T> tile = g;
  tile.m = std::min(c.rows, g.m - row);
  tile.n = std::min(c.columns, g.n - column);
  tile.a += row * (g.a_transposed ? 1 : g.a_stride);
  tile.b += column * (g.b_transposed ? g.b_stride : 1);
  tile.c += row * g.c_stride + column;
  return tile;
}

// oneDNN is slow at x · wᵀ, because it transposes w in each tile anew, element by element: given enough rows
// it pays to transpose w once beforehand (docs/decisions.md).
constexpr int64_t kRowsWorthTransposing = 128;
constexpr int64_t kRowsOfTranspose = 64;  // of w, in one task

template <class T>
bool worth_transposing(const Gemm<T>& g) {
  return sizeof(T) == sizeof(float) && g.b_transposed && g.m >= kRowsWorthTransposing;
}

// Products e = 0 … count−1 at once, of equal n and k (experts with their own rows), or one.
template <class T>
class Products {
 public:
  Products(int64_t count, FunctionRef<Gemm<T>(int64_t)> product)
      : count_(count), product_(product), starts_(Tensor::empty({2, count + 1}, DType::i64)) {
    std::span<int64_t> tiles = starts_.span<int64_t>().first(static_cast<size_t>(count + 1));
    int64_t* copies = starts_.data<int64_t>() + count + 1;
    tiles[0] = copies[0] = 0;
    for (int64_t e = 0; e < count; ++e) {
      const Gemm<T> g = product(e);
      const Cut c = cut(g.m, g.n, g.k);
      tiles[static_cast<size_t>(e + 1)] = tiles[static_cast<size_t>(e)] + c.down(g.m) * c.across(g.n);
      copies[e + 1] = copies[e] + (worth_transposing(g) ? g.k * transposed_stride(g.n) : 0);
    }
    tiles_ = tiles;
    copies_ = copies;
  }

  void run() {
    transpose();
    parallel_for(tiles_.back(), 1, [&](int64_t t, int64_t) {
      const int64_t e = std::ranges::upper_bound(tiles_, t) - tiles_.begin() - 1;
      Gemm<T> g = product_(e);
      if (worth_transposing(g)) {
        g.b = transposed_.data<const T>() + copies_[e];
        g.b_stride = transposed_stride(g.n);
        g.b_transposed = false;
      }
      gemm(tile_of(g, cut(g.m, g.n, g.k), t - tiles_[static_cast<size_t>(e)]));
    });
  }

 private:
  void transpose() {
    if (copies_[count_] == 0) return;
    if constexpr (std::is_same_v<T, float>) {
      transposed_ = Tensor::empty({copies_[count_]}, DType::f32);
      const int64_t n = product_(0).n;
      const int64_t pieces = (n + kRowsOfTranspose - 1) / kRowsOfTranspose;
      parallel_for(count_ * pieces, 1, [&](int64_t task, int64_t) {
        const int64_t e = task / pieces;
        const Gemm<T> g = product_(e);
        if (!worth_transposing(g)) return;
        const int64_t begin = task % pieces * kRowsOfTranspose;
        transpose_rows(g.b, g.k, transposed_.data<T>() + copies_[e], n, begin,
                       std::min(begin + kRowsOfTranspose, n));
      });
    }
  }

  int64_t count_;
  FunctionRef<Gemm<T>(int64_t)> product_;
  Tensor starts_;                   // first tile of each product, first element of its transposed weights
  std::span<const int64_t> tiles_;  // into starts_
  const int64_t* copies_;
  Tensor transposed_;
};

enum class Form { nn, nt, tn };

// c (+)= a · b, dense row-major matrices at the given places.
template <class T>
Gemm<T> dense(Form form, int64_t m, int64_t n, int64_t k, const T* a, const T* b, T* c) {
  return {.m = m,
          .n = n,
          .k = k,
          .a = a,
          .a_stride = form == Form::tn ? m : k,
          .a_transposed = form == Form::tn,
          .b = b,
          .b_stride = form == Form::nt ? k : n,
          .b_transposed = form == Form::nt,
          .c = c,
          .c_stride = n,
          .accumulate = form == Form::tn};
}

void check_dtypes(const Tensor& a, const Tensor& b, const Tensor& c) {
  PHX_CHECK(a.dtype() == c.dtype() && b.dtype() == c.dtype(), "product of {} and {} into {}",
            dtype_name(a.dtype()), dtype_name(b.dtype()), dtype_name(c.dtype()));
}

void product(Form form, const char* name, const Tensor& a, const Tensor& b, const Tensor& c) {
  check_dtypes(a, b, c);
  const int64_t k = form == Form::tn ? a.dim(0) : a.dim(1);
  const TraceSpan span(TraceKind::product, name, 2 * c.numel() * k);
  visit_float(c.dtype(), [&](auto t) {
    using T = decltype(t);
    const auto one = [&](int64_t) {
      return dense(form, c.dim(0), c.dim(1), k, a.data<const T>(), b.data<const T>(), c.data<T>());
    };
    Products<T>(1, one).run();
  });
}

std::span<const int64_t> checked_offsets(const Tensor& offsets, const Tensor& w, int64_t rows) {
  const auto o = offsets.span<const int64_t>();
  PHX_CHECK(std::ssize(o) == w.dim(0) + 1 && o.front() >= 0 && o.back() <= rows && std::ranges::is_sorted(o),
            "offsets {} of {} experts in {} rows", o, w.dim(0), rows);
  return o;
}

// Rows of y from rows of x and each expert's own weight.
void grouped(Form form, const Tensor& x, const Tensor& w, const Tensor& y, const Tensor& offsets) {
  check_dtypes(x, w, y);
  const auto o = checked_offsets(offsets, w, x.rows());
  const TraceSpan span(TraceKind::product, form == Form::nn ? "grouped_matmul" : "grouped_matmul_nt",
                       2 * (o.back() - o.front()) * x.dim(1) * y.dim(1));
  visit_float(y.dtype(), [&](auto t) {
    using T = decltype(t);
    const int64_t k = x.dim(1);
    const int64_t n = y.dim(1);
    const auto of_expert = [&](int64_t e) {
      const int64_t begin = o[static_cast<size_t>(e)];
      return dense(form, o[static_cast<size_t>(e + 1)] - begin, n, k, x.data<const T>() + begin * k,
                   w.data<const T>() + e * n * k, y.data<T>() + begin * n);
    };
    Products<T>(w.dim(0), of_expert).run();
  });
}

}  // namespace

Tensor matmul(const Tensor& x, const Tensor& w) {
  PHX_CHECK(x.dim(1) == w.dim(0), "matmul of {} and {}", x.shape(), w.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::matmul(x, w);
  }
  const Tensor y = Tensor::empty({x.dim(0), w.dim(1)}, x.dtype());
  product(Form::nn, "matmul", x, w, y);
  return y;
}

Tensor matmul_nt(const Tensor& x, const Tensor& w) {
  PHX_CHECK(x.dim(1) == w.dim(1), "matmul_nt of {} and {}", x.shape(), w.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::matmul_nt(x, w);
  }
  const Tensor y = Tensor::empty({x.dim(0), w.dim(0)}, x.dtype());
  product(Form::nt, "matmul_nt", x, w, y);
  return y;
}

void matmul_tn_into(Tensor dw, const Tensor& dy, const Tensor& x) {
  PHX_CHECK(dy.dim(0) == x.dim(0) && dw.dim(0) == dy.dim(1) && dw.dim(1) == x.dim(1),
            "matmul_tn_into {} of {} and {}", dw.shape(), dy.shape(), x.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::matmul_tn_into(dw, dy, x);
  }
  product(Form::tn, "matmul_tn_into", dy, x, dw);
}

Rows grouped_matmul(const Rows& x, const Tensor& w, const Tensor& offsets) {
  PHX_CHECK(x.data.dim(1) == w.dim(1), "grouped_matmul of {} and {}", x.data.shape(), w.shape());
  const Rows y = rows_like(x, {0, w.dim(2)}, x.data.dtype());
  grouped(Form::nn, x.data, w, y.data, offsets);
  return y;
}

Rows grouped_matmul_nt(const Rows& x, const Tensor& w, const Tensor& offsets) {
  PHX_CHECK(x.data.dim(1) == w.dim(2), "grouped_matmul_nt of {} and {}", x.data.shape(), w.shape());
  const Rows y = rows_like(x, {0, w.dim(1)}, x.data.dtype());
  grouped(Form::nt, x.data, w, y.data, offsets);
  return y;
}

void grouped_matmul_tn_into(Tensor dw, const Rows& dy, const Rows& x, const Tensor& offsets) {
  PHX_CHECK(dw.dim(1) == dy.data.dim(1) && dw.dim(2) == x.data.dim(1),
            "grouped_matmul_tn_into {} of {} and {}", dw.shape(), dy.data.shape(), x.data.shape());
  check_dtypes(dy.data, x.data, dw);
  const auto o = checked_offsets(offsets, dw, std::min(dy.data.rows(), x.data.rows()));
  const TraceSpan span(TraceKind::product, "grouped_matmul_tn_into",
                       2 * (o.back() - o.front()) * dw.dim(1) * dw.dim(2));
  visit_float(dw.dtype(), [&](auto t) {
    using T = decltype(t);
    const int64_t m = dw.dim(1);
    const int64_t n = dw.dim(2);
    const auto of_expert = [&](int64_t e) {
      const int64_t begin = o[static_cast<size_t>(e)];
      return dense(Form::tn, m, n, o[static_cast<size_t>(e + 1)] - begin, dy.data.data<const T>() + begin * m,
                   x.data.data<const T>() + begin * n, dw.data<T>() + e * m * n);
    };
    Products<T>(dw.dim(0), of_expert).run();
  });
}

}  // namespace phalanx
