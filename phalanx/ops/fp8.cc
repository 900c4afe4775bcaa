#include "phalanx/ops/fp8.h"

#include <algorithm>
#include <cmath>

#include "phalanx/base/parallel_for.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/quantize_scale.h"

namespace phalanx {
namespace {

// Lines with room for `stored` terms each.
Fp8Lines lines(int64_t count, int64_t stored, ScaleFormat format, Device device) {
  return {.q_RK = Tensor::empty({count, stored}, DType::f8e4m3, device),
          .scales_SR = Tensor::empty(padded_scales(scale_groups(stored), count), DType::f32, device),
          .format = format};
}

Fp8Lines rows_like(const Tensor& x, ScaleFormat format) {
  return lines(x.dim(0), x.dim(1), format, x.device());
}

Fp8Lines columns_like(const Tensor& x, ScaleFormat format) {
  const int64_t stored = (x.dim(0) + kTermPad - 1) / kTermPad * kTermPad;
  return lines(x.dim(1), stored, format, x.device());
}

// [E, N, K], or [N, K], seen as E matrices.
struct Matrices {
  int64_t count;
  int64_t rows;
  int64_t columns;

  explicit Matrices(const Tensor& t) : count(1) {
    const int rank = t.shape().rank();
    PHX_CHECK(rank == 2 || rank == 3, "blocks of {}", t.shape());
    if (rank == 3) count = t.dim(0);
    rows = t.dim(rank - 2);
    columns = t.dim(rank - 1);
  }
  // Of so many matrices [n, k], in as many dimensions as `like`.
  Shape shape_like(const Tensor& like, int64_t n, int64_t k) const {
    return like.shape().rank() == 3 ? Shape{count, n, k} : Shape{n, k};
  }
};

Fp8Blocks blocks_like(const Tensor& w, bool transposed) {
  const Matrices m(w);
  const int64_t n = transposed ? m.columns : m.rows;
  const int64_t k = transposed ? m.rows : m.columns;
  return {.q_NK = Tensor::empty(m.shape_like(w, n, k), DType::f8e4m3, w.device()),
          .scales = Tensor::empty(m.shape_like(w, scale_groups(n), scale_groups(k)), DType::f32, w.device())};
}

void check_blocks(const Fp8Blocks& w) {
  const Matrices m(w.q_NK);
  const Shape scales = m.shape_like(w.q_NK, scale_groups(m.rows), scale_groups(m.columns));
  PHX_CHECK(w.q_NK.dtype() == DType::f8e4m3 && w.scales.shape() == scales, "{} {} with scales {}",
            dtype_name(w.q_NK.dtype()), w.q_NK.shape(), w.scales.shape());
}

// Calls f(element) with element(i) the value in x at i.
template <class F>
void with_elements(const Tensor& x, F&& f) {
  if (x.dtype() == DType::bf16) return f([p = x.data<const bf16>()](int64_t i) { return p[i].to_float(); });
  f([p = x.data<const float>()](int64_t i) { return p[i]; });
}

// Not less than `largest`; passes over NaN.
float larger(float largest, float value) {
  const float magnitude = std::abs(value);
  return magnitude > largest ? magnitude : largest;
}

// Lines of `length` terms, value(r, k) is that of term k of line r; the rest of their room becomes zero.
template <class Value>
void quantize_lines(int64_t length, const Fp8Lines& to, const Value& value) {
  const int64_t count = to.q_RK.dim(0);
  const int64_t stored = to.q_RK.dim(1);
  const int64_t pitch = to.scales_SR.dim(1);
  auto* const q = to.q_RK.data<f8e4m3>();
  auto* const scales = to.scales_SR.data<float>();
  std::fill_n(scales, to.scales_SR.numel(), 0.0f);
  parallel_for(count, 8, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t first = 0; first < stored; first += kScaleGroup) {
        const int64_t last = std::min(length, first + kScaleGroup);
        float largest = kLeastOfFactors;
        for (int64_t k = first; k < last; ++k) largest = larger(largest, value(r, k));
        const GroupScale group = group_scale(largest, to.format);
        scales[first / kScaleGroup * pitch + r] = group.scale;
        const int64_t end_of_group = std::min(stored, first + kScaleGroup);
        for (int64_t k = first; k < end_of_group; ++k)
          q[r * stored + k] = f8e4m3::from(k < last ? value(r, k) * group.by : 0);
      }
    }
  });
}

void quantize_rows(const Tensor& x, const Fp8Lines& to) {
  const int64_t width = x.dim(1);
  with_elements(x, [&](const auto& element) {
    quantize_lines(width, to, [&](int64_t r, int64_t k) { return element(r * width + k); });
  });
}

void quantize_columns(const Tensor& x, const Fp8Lines& to) {
  const int64_t width = x.dim(1);
  with_elements(x, [&](const auto& element) {
    quantize_lines(x.dim(0), to, [&](int64_t r, int64_t k) { return element(k * width + r); });
  });
}

// Each block of w, as it is or transposed.
void quantize_blocks(const Tensor& w, ScaleFormat format, bool transposed, const Fp8Blocks& to) {
  const Matrices m(w);
  const int64_t down = scale_groups(m.rows);
  const int64_t across = scale_groups(m.columns);
  auto* const q = to.q_NK.data<f8e4m3>();
  auto* const scales = to.scales.data<float>();
  with_elements(w, [&](const auto& element) {
    parallel_for(m.count * down * across, 1, [&](int64_t block, int64_t) {
      const int64_t matrix = block / (down * across);
      const int64_t row = block / across % down;
      const int64_t column = block % across;
      const int64_t first = matrix * m.rows * m.columns;
      // f(from, to) for the place of each element of the block in w and in q.
      const auto for_each = [&](const auto& f) {
        const int64_t last_row = std::min(m.rows, (row + 1) * kScaleGroup);
        const int64_t last_column = std::min(m.columns, (column + 1) * kScaleGroup);
        for (int64_t n = row * kScaleGroup; n < last_row; ++n) {
          for (int64_t k = column * kScaleGroup; k < last_column; ++k) {
            const int64_t from = first + n * m.columns + k;
            f(from, transposed ? first + k * m.rows + n : from);
          }
        }
      };
      float largest = kLeastOfFactors;
      for_each([&](int64_t from, int64_t) { largest = larger(largest, element(from)); });
      const GroupScale group = group_scale(largest, format);
      const int64_t place = transposed ? column * down + row : row * across + column;
      scales[matrix * down * across + place] = group.scale;
      for_each([&](int64_t from, int64_t at) { q[at] = f8e4m3::from(element(from) * group.by); });
    });
  });
}

}  // namespace

Fp8Lines fp8_rows(const Tensor& x, ScaleFormat format) {
  Fp8Lines out = rows_like(x, format);
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) {
      cuda::fp8_lines_into(x, &out, nullptr);
      return out;
    }
  }
  const TraceSpan span(TraceKind::elementwise, "fp8_rows", x.bytes() + out.q_RK.bytes());
  quantize_rows(x, out);
  return out;
}

Fp8Lines fp8_columns(const Tensor& x, ScaleFormat format) {
  Fp8Lines out = columns_like(x, format);
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) {
      cuda::fp8_lines_into(x, nullptr, &out);
      return out;
    }
  }
  const TraceSpan span(TraceKind::elementwise, "fp8_columns", x.bytes() + out.q_RK.bytes());
  quantize_columns(x, out);
  return out;
}

Fp8RowsAndColumns fp8_rows_and_columns(const Tensor& x, ScaleFormat format) {
  Fp8RowsAndColumns out = {rows_like(x, format), columns_like(x, format)};
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) {
      cuda::fp8_lines_into(x, &out.rows, &out.columns);
      return out;
    }
  }
  const TraceSpan span(TraceKind::elementwise, "fp8_rows_and_columns", x.bytes() + 2 * out.rows.q_RK.bytes());
  quantize_rows(x, out.rows);
  quantize_columns(x, out.columns);
  return out;
}

Fp8Lines fp8_columns(const Fp8Lines& rows) {
  const Tensor& x = rows.q_RK;
  PHX_CHECK(rows.format == ScaleFormat::ue8m0, "columns of rows whose scales are not powers of two");
  PHX_CHECK(rows.scales_SR.shape() == padded_scales(scale_groups(x.dim(1)), x.dim(0)),
            "rows {} with scales {}", x.shape(), rows.scales_SR.shape());
  Fp8Lines out = columns_like(x, rows.format);
  if constexpr (kHaveCuda) {
    if (x.on_cuda()) {
      cuda::fp8_columns_into(rows, out);
      return out;
    }
  }
  const TraceSpan span(TraceKind::elementwise, "fp8_columns", x.bytes() + out.q_RK.bytes());
  const auto* const q = x.data<const f8e4m3>();
  const auto* const scales = rows.scales_SR.data<const float>();
  const int64_t width = x.dim(1);
  const int64_t pitch = rows.scales_SR.dim(1);
  quantize_lines(x.dim(0), out, [&](int64_t r, int64_t k) {
    return q[k * width + r].to_float() * scales[r / kScaleGroup * pitch + k];
  });
  return out;
}

Fp8Blocks fp8_blocks(const Tensor& w, ScaleFormat format) {
  Fp8Blocks out = blocks_like(w, false);
  if constexpr (kHaveCuda) {
    if (w.on_cuda()) {
      cuda::fp8_blocks_into(w, format, out);
      return out;
    }
  }
  const TraceSpan span(TraceKind::elementwise, "fp8_blocks", w.bytes() + out.q_NK.bytes());
  quantize_blocks(w, format, false, out);
  return out;
}

Fp8Blocks fp8_blocks_transposed(const Tensor& w, ScaleFormat format) {
  Fp8Blocks out = blocks_like(w, true);
  if constexpr (kHaveCuda) {
    if (w.on_cuda()) {
      cuda::fp8_blocks_transposed_into(w, format, out);
      return out;
    }
  }
  const TraceSpan span(TraceKind::elementwise, "fp8_blocks_transposed", w.bytes() + out.q_NK.bytes());
  quantize_blocks(w, format, true, out);
  return out;
}

Fp8Blocks fp8_transposed(const Fp8Blocks& w) {
  check_blocks(w);
  Fp8Blocks out = blocks_like(w.q_NK, true);
  if constexpr (kHaveCuda) {
    if (w.q_NK.on_cuda()) {
      cuda::fp8_transposed_into(w, out);
      return out;
    }
  }
  const TraceSpan span(TraceKind::elementwise, "fp8_transposed", 2 * w.q_NK.bytes());
  const auto transpose = [](const auto* from, auto* to, const Matrices& m) {
    parallel_for(m.count * m.columns, 8, [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) {
        const int64_t first = line / m.columns * m.rows * m.columns + line % m.columns;
        for (int64_t r = 0; r < m.rows; ++r) to[line * m.rows + r] = from[first + r * m.columns];
      }
    });
  };
  transpose(w.q_NK.data<const f8e4m3>(), out.q_NK.data<f8e4m3>(), Matrices(w.q_NK));
  transpose(w.scales.data<const float>(), out.scales.data<float>(), Matrices(w.scales));
  return out;
}

}  // namespace phalanx
