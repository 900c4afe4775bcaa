#include "phalanx/ops/matmul.h"

#include <algorithm>
#include <type_traits>

#include "phalanx/base/function_ref.h"
#include "phalanx/base/parallel_for.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/bias.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/elementwise.h"
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
constexpr int64_t kTileColumns = 512;         // at most
constexpr int64_t kTiles = 8;                 // enough to share out among a few threads

// Tiles of 64 rows and more, 128 or 256 where there are enough of them: fewer would pack b too often. Few
// rows are cut by columns alone, in multiples of the library's widest kernel.
Cut cut(int64_t m, int64_t n, int64_t k) {
  const int64_t most = std::max<int64_t>(1, 2 * m * n * std::max<int64_t>(k, 1) / kTileOperations);
  int64_t across = std::clamp<int64_t>((n + kTileColumns - 1) / kTileColumns, 1, most);
  const int64_t enough = std::max<int64_t>({1, kTiles / across, m / (m < 2048 ? 128 : 256)});
  const int64_t down = std::min(std::max<int64_t>(1, most / across), std::clamp<int64_t>(m / 64, 1, enough));
  if (down == 1) across = std::min(most, std::max(across, std::clamp<int64_t>(n / 192, 1, 2 * kTiles)));
  return {round_up(std::max<int64_t>(1, (m + down - 1) / down), 16),
          round_up(std::max<int64_t>(1, (n + across - 1) / across), 48)};
}

// What oneDNN multiplies faster when it is transposed beforehand (docs/decisions.md): w in x · wᵀ, which it
// would transpose in each tile anew, element by element; dy in dyᵀ · x, when its rows are long and x's are
// not.
enum class Copied { none, a, b };

template <class T>
Copied copied(const Gemm<T>& g) {
  if (sizeof(T) != sizeof(float)) return Copied::none;
  if (g.b_transposed && g.m >= 128) return Copied::b;
  return g.a_transposed && g.m >= 1024 && g.n <= 512 && g.k >= 128 ? Copied::a : Copied::none;
}

// The transposed copy of one factor. Of b, a matrix for the columns of each tile, one behind the other: in
// one matrix with rows as long as a wide c's, a tile's would lie far apart and be slow to read.
struct Copy {
  Copied factor = Copied::none;
  int64_t rows = 0;     // of the stored factor
  int64_t columns = 0;  // of the stored factor
  int64_t block = 1;    // so many of its rows make a matrix of the copy

  template <class T>
  explicit Copy(const Gemm<T>& g) : factor(copied(g)) {
    if (factor == Copied::a) {
      rows = block = g.k;
      columns = g.m;
    } else if (factor == Copied::b) {
      rows = g.n;
      columns = g.k;
      block = cut(g.m, g.n, g.k).columns;
    }
  }

  int64_t numel() const { return columns * transposed_stride(rows); }
};

// Tile `index` of g, whose copied factor, if it has one, lies at `copy`.
template <class T>
Gemm<T> tile_of(const Gemm<T>& g, int64_t index, const T* copy) {
  const Cut c = cut(g.m, g.n, g.k);
  const int64_t row = index / c.across(g.n) * c.rows;
  const int64_t column = index % c.across(g.n) * c.columns;
  Gemm<T> tile = g;
  tile.m = std::min(c.rows, g.m - row);
  tile.n = std::min(c.columns, g.n - column);
  tile.a += row * (g.a_transposed ? 1 : g.a_stride);
  tile.b += column * (g.b_transposed ? g.b_stride : 1);
  tile.c += row * g.c_stride + column;
  const Copied factor = copied(g);
  if (factor == Copied::a) {
    tile.a_transposed = false;
    tile.a_stride = transposed_stride(g.k);
    tile.a = copy + row * tile.a_stride;
  } else if (factor == Copied::b) {
    tile.b_transposed = false;
    tile.b_stride = transposed_stride(tile.n);
    tile.b = copy + column * g.k;
  }
  return tile;
}

// Products e = 0 … count−1 at once, of equal n (experts with their own rows), or one.
template <class T>
class Products {
 public:
  Products(int64_t count, FunctionRef<Gemm<T>(int64_t)> product)
      : count_(count), product_(product), starts_(Tensor::zeros({3, count + 1}, DType::i64)) {
    const auto row = [this](int64_t i) { return starts_.slice(i, i + 1).template span<int64_t>(); };
    const std::span<int64_t> tiles = row(0);
    const std::span<int64_t> tasks = row(1);
    const std::span<int64_t> copies = row(2);
    for (size_t e = 0; e < static_cast<size_t>(count); ++e) {
      const Gemm<T> g = product(static_cast<int64_t>(e));
      const Cut c = cut(g.m, g.n, g.k);
      const Copy copy(g);
      tiles[e + 1] = tiles[e] + c.down(g.m) * c.across(g.n);
      tasks[e + 1] = tasks[e] + (copy.rows + kTaskRows - 1) / kTaskRows;
      copies[e + 1] = copies[e] + copy.numel();
    }
    tiles_ = tiles;
    tasks_ = tasks;
    copies_ = copies;
  }

  void run() {
    transpose();
    parallel_for(tiles_.back(), 1, [&](int64_t t, int64_t) {
      const Place at = find(tiles_, t);
      const T* copy = transposed_.defined() ? transposed_.data<const T>() + copies_[at.product] : nullptr;
      gemm(tile_of(product_(static_cast<int64_t>(at.product)), at.index, copy));
    });
  }

 private:
  static constexpr int64_t kTaskRows = 48;  // of a factor that is transposed: a tile's columns are a multiple

  struct Place {
    size_t product;
    int64_t index;  // in it
  };
  static Place find(std::span<const int64_t> starts, int64_t at) {
    const auto e = static_cast<size_t>(std::ranges::upper_bound(starts, at) - starts.begin()) - 1;
    return {e, at - starts[e]};
  }

  void transpose() {
    if (copies_.back() == 0) return;
    if constexpr (std::is_same_v<T, float>) {
      transposed_ = Tensor::empty({copies_.back()}, DType::f32);
      parallel_for(tasks_.back(), 1, [&](int64_t t, int64_t) {
        const Place at = find(tasks_, t);
        const Gemm<T> g = product_(static_cast<int64_t>(at.product));
        const Copy copy(g);
        const int64_t row = at.index * kTaskRows;
        const int64_t first = row / copy.block * copy.block;
        transpose_rows((copy.factor == Copied::a ? g.a : g.b) + first * copy.columns, copy.columns,
                       transposed_.data<T>() + copies_[at.product] + first * copy.columns,
                       std::min(copy.block, copy.rows - first), row - first,
                       std::min(row + kTaskRows, copy.rows) - first);
      });
    }
  }

  int64_t count_;
  FunctionRef<Gemm<T>(int64_t)> product_;
  Tensor starts_;                    // of the next three
  std::span<const int64_t> tiles_;   // before each product
  std::span<const int64_t> tasks_;   // of transposing, before each product's
  std::span<const int64_t> copies_;  // elements before each product's copy
  Tensor transposed_;
};

enum class Form { nn, nt, tn };

// c (+)= a · b, dense row-major matrices at the given places.
template <class T>
Gemm<T> dense(Form form, int64_t m, int64_t n, int64_t k, const T* a, const T* b, T* c, Into into) {
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
          .accumulate = into == Into::add};
}

void check_dtypes(const Tensor& a, const Tensor& b, const Tensor& c) {
  PHX_CHECK(a.dtype() == c.dtype() && b.dtype() == c.dtype(), "product of {} and {} into {}",
            dtype_name(a.dtype()), dtype_name(b.dtype()), dtype_name(c.dtype()));
}

void product(Form form, const char* name, const Tensor& a, const Tensor& b, const Tensor& c, Into into) {
  check_dtypes(a, b, c);
  const int64_t k = form == Form::tn ? a.dim(0) : a.dim(1);
  const TraceSpan span(TraceKind::product, name, 2 * c.numel() * k);
  visit_float(c.dtype(), [&](auto t) {
    using T = decltype(t);
    const auto one = [&](int64_t) {
      return dense(form, c.dim(0), c.dim(1), k, a.data<const T>(), b.data<const T>(), c.data<T>(), into);
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
                   w.data<const T>() + e * n * k, y.data<T>() + begin * n, Into::replace);
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
  product(Form::nn, "matmul", x, w, y, Into::replace);
  return y;
}

Tensor matmul_nt(const Tensor& x, const Tensor& w) {
  PHX_CHECK(x.dim(1) == w.dim(1), "matmul_nt of {} and {}", x.shape(), w.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::matmul_nt(x, w);
  }
  const Tensor y = Tensor::empty({x.dim(0), w.dim(0)}, x.dtype());
  product(Form::nt, "matmul_nt", x, w, y, Into::replace);
  return y;
}

void matmul_into(Tensor y, const Tensor& x, const Tensor& w, Into into) {
  PHX_CHECK(x.dim(1) == w.dim(0) && y.dim(0) == x.dim(0) && y.dim(1) == w.dim(1),
            "matmul_into {} of {} and {}", y.shape(), x.shape(), w.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::matmul_into(y, x, w, into);
  }
  product(Form::nn, "matmul_into", x, w, y, into);
}

void matmul_nt_into(Tensor y, const Tensor& x, const Tensor& w, Into into) {
  PHX_CHECK(x.dim(1) == w.dim(1) && y.dim(0) == x.dim(0) && y.dim(1) == w.dim(0),
            "matmul_nt_into {} of {} and {}", y.shape(), x.shape(), w.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::matmul_nt_into(y, x, w, into);
  }
  product(Form::nt, "matmul_nt_into", x, w, y, into);
}

void linear_into(Tensor y, const Tensor& x, const Tensor& w, const Tensor& b, const Tensor& also) {
  PHX_CHECK(!b.defined() || b.numel() == w.dim(0), "a bias {} of a linear layer {}", b.shape(), w.shape());
  PHX_CHECK(!also.defined() || also.shape() == y.shape(), "linear_into {} and also {}", y.shape(),
            also.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::linear_into(y, x, w, b, also);
  }
  matmul_nt_into(y, x, w, Into::replace);
  if (b.defined()) add_bias_into(y, b);
  if (also.defined()) add_into(std::move(y), also);
}

void matmul_tn_into(Tensor dw, const Tensor& dy, const Tensor& x, Into into) {
  PHX_CHECK(dy.dim(0) == x.dim(0) && dw.dim(0) == dy.dim(1) && dw.dim(1) == x.dim(1),
            "matmul_tn_into {} of {} and {}", dw.shape(), dy.shape(), x.shape());
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) return cuda::matmul_tn_into(dw, dy, x, into);
  }
  product(Form::tn, "matmul_tn_into", dy, x, dw, into);
}

void tune_products([[maybe_unused]] bool on) {
  if constexpr (kHaveCuda) cuda::tune_products(on);
}

Rows grouped_matmul(const Rows& x, const Tensor& w, const Tensor& offsets) {
  PHX_CHECK(x.data.dim(1) == w.dim(1), "grouped_matmul of {} and {}", x.data.shape(), w.shape());
  if constexpr (kHaveCuda) {
    if (x.data.on_cuda()) return cuda::grouped_matmul(x, w, offsets);
  }
  const Rows y = rows_like(x, {0, w.dim(2)}, x.data.dtype());
  grouped(Form::nn, x.data, w, y.data, offsets);
  return y;
}

Rows grouped_matmul_nt(const Rows& x, const Tensor& w, const Tensor& offsets) {
  PHX_CHECK(x.data.dim(1) == w.dim(2), "grouped_matmul_nt of {} and {}", x.data.shape(), w.shape());
  if constexpr (kHaveCuda) {
    if (x.data.on_cuda()) return cuda::grouped_matmul_nt(x, w, offsets);
  }
  const Rows y = rows_like(x, {0, w.dim(1)}, x.data.dtype());
  grouped(Form::nt, x.data, w, y.data, offsets);
  return y;
}

void grouped_matmul_tn_into(Tensor dw, const Rows& dy, const Rows& x, const Tensor& offsets, Into into) {
  PHX_CHECK(dw.dim(1) == dy.data.dim(1) && dw.dim(2) == x.data.dim(1),
            "grouped_matmul_tn_into {} of {} and {}", dw.shape(), dy.data.shape(), x.data.shape());
  if constexpr (kHaveCuda) {
    if (dw.on_cuda()) return cuda::grouped_matmul_tn_into(dw, dy, x, offsets, into);
  }
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
                   x.data.data<const T>() + begin * n, dw.data<T>() + e * m * n, into);
    };
    Products<T>(dw.dim(0), of_expert).run();
  });
}

}  // namespace phalanx
