#include "tests/ops/fp8_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace phalanx::test {
namespace {

float element(const Tensor& t, int64_t i) {
  return t.dtype() == DType::bf16 ? t.data<bf16>()[i].to_float() : t.data<float>()[i];
}

struct Scale {
  float by;
  float back;
};

Scale scale_of(float largest, ScaleFormat format, float least = 0x1p-100f) {
  largest = std::max(largest, least);
  const float back = largest * (1 / 448.0f);
  if (format == ScaleFormat::f32) return {448 / largest, back};
  const auto power = static_cast<float>(std::exp2(std::ceil(std::log2(static_cast<double>(back)))));
  return {1 / power, power};
}

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Lines of x [T, D]: its rows, or its columns.
LinesReference reference(const Tensor& x, bool columns, ScaleFormat format, float least = 0x1p-100f) {
  const int64_t count = x.dim(columns ? 1 : 0);
  const int64_t length = x.dim(columns ? 0 : 1);
  const int64_t stored = columns ? round_up(length, 16) : length;
  const auto at = [&](int64_t r, int64_t k) { return columns ? k * count + r : r * length + k; };
  const LinesReference out = {Tensor::zeros({count, stored}, DType::f8e4m3),
                              Tensor::zeros({(stored + 127) / 128, round_up(count, 4)}, DType::f32)};
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t s = 0; s < out.scales.dim(0); ++s) {
      const int64_t end = std::min(length, 128 * s + 128);
      float largest = 0;
      for (int64_t k = 128 * s; k < end; ++k) largest = std::max(largest, std::abs(element(x, at(r, k))));
      const Scale scale = scale_of(largest, format, least);
      out.scales.data<float>()[s * out.scales.dim(1) + r] = scale.back;
      for (int64_t k = 128 * s; k < end; ++k)
        out.q.data<f8e4m3>()[r * stored + k] = f8e4m3::from(element(x, at(r, k)) * scale.by);
    }
  }
  return out;
}

template <class T>
void transpose_elements(const Tensor& from, const Tensor& to) {
  for (int64_t r = 0; r < from.dim(0); ++r) {
    for (int64_t c = 0; c < from.dim(1); ++c)
      to.data<T>()[c * from.dim(0) + r] = from.data<T>()[r * from.dim(1) + c];
  }
}

}  // namespace

LinesReference rows_reference(const Tensor& x, ScaleFormat format, float least) {
  return reference(x, false, format, least);
}

LinesReference columns_reference(const Tensor& x, ScaleFormat format) { return reference(x, true, format); }

BlocksReference blocks_reference(const Tensor& w, ScaleFormat format) {
  const int64_t rows = w.dim(0);
  const int64_t width = w.dim(1);
  const BlocksReference out = {Tensor::zeros(w.shape(), DType::f8e4m3),
                               Tensor::zeros({(rows + 127) / 128, (width + 127) / 128}, DType::f32)};
  const int64_t across = out.scales.dim(1);
  std::vector<float> largest(static_cast<size_t>(out.scales.numel()), 0);
  const auto block = [&](int64_t i) {
    return static_cast<size_t>(i / width / 128 * across + i % width / 128);
  };
  for (int64_t i = 0; i < w.numel(); ++i)
    largest[block(i)] = std::max(largest[block(i)], std::abs(element(w, i)));
  for (size_t b = 0; b < largest.size(); ++b) out.scales.data<float>()[b] = scale_of(largest[b], format).back;
  for (int64_t i = 0; i < w.numel(); ++i)
    out.q.data<f8e4m3>()[i] = f8e4m3::from(element(w, i) * scale_of(largest[block(i)], format).by);
  return out;
}

Tensor transpose_reference(const Tensor& x) {
  const Tensor y = Tensor::empty({x.dim(1), x.dim(0)}, x.dtype());
  if (x.dtype() == DType::f32) {
    transpose_elements<float>(x, y);
  } else {
    transpose_elements<f8e4m3>(x, y);
  }
  return y;
}

Tensor scattered(Random& random, const Shape& shape, DType dtype) {
  std::vector<int> rows;
  std::vector<int> columns;
  for (int64_t i = 0; i < shape[0]; ++i) rows.push_back(static_cast<int>(random.integer(-12, 12)));
  for (int64_t i = 0; i < shape[1]; ++i) columns.push_back(static_cast<int>(random.integer(-12, 12)));
  const Tensor t = Tensor::empty(shape, dtype);
  for (int64_t i = 0; i < t.numel(); ++i) {
    const int exponent = rows[static_cast<size_t>(i / shape[1])] + columns[static_cast<size_t>(i % shape[1])];
    const auto v = static_cast<float>(std::ldexp(random.integer(0, 16) == 0 ? 0 : random.normal(), exponent));
    if (dtype == DType::f32) t.data<float>()[i] = v;
    if (dtype == DType::bf16) t.data<bf16>()[i] = bf16::from(v);
  }
  return t;
}

Tensor line_values(const Fp8Lines& lines, int64_t length) {
  const Tensor q = lines.q_RK.to(kCpu);
  const Tensor scales = lines.scales_SR.to(kCpu);
  const Tensor out = Tensor::empty({q.dim(0), length}, DType::f32);
  for (int64_t i = 0; i < out.numel(); ++i) {
    const int64_t r = i / length;
    const int64_t k = i % length;
    out.data<float>()[i] =
        q.data<f8e4m3>()[r * q.dim(1) + k].to_float() * scales.data<float>()[k / 128 * scales.dim(1) + r];
  }
  return out;
}

Values fp8_values(const Tensor& q) {
  const Tensor host = q.to(kCpu);
  Values out;
  for (const f8e4m3 x : host.span<const f8e4m3>()) out.push_back(static_cast<double>(x.to_float()));
  return out;
}

Tensor wide_on_host(const Tensor& x) {
  const Tensor host = x.to(kCpu);
  const Tensor out = Tensor::empty(x.shape(), DType::f32);
  for (int64_t i = 0; i < x.numel(); ++i) out.data<float>()[i] = host.data<bf16>()[i].to_float();
  return out;
}

Tensor rounded_on_host(const Tensor& x, DType dtype) {
  if (dtype == DType::f32) return x;
  const Tensor out = Tensor::empty(x.shape(), DType::bf16);
  for (int64_t i = 0; i < x.numel(); ++i) out.data<bf16>()[i] = bf16::from(x.data<float>()[i]);
  return out;
}

std::string first_difference(const Tensor& got, const Tensor& want) {
  if (got.shape() != want.shape() || got.dtype() != want.dtype())
    return format("{} {}, expected {} {}", dtype_name(got.dtype()), got.shape(), dtype_name(want.dtype()),
                  want.shape());
  const Tensor host = got.to(kCpu);
  const size_t size = dtype_size(want.dtype());
  for (int64_t i = 0; i < want.numel(); ++i) {
    const auto at = static_cast<size_t>(i) * size;
    if (std::memcmp(host.raw() + at, want.raw() + at, size) == 0) continue;
    uint32_t bits[2] = {0, 0};
    std::memcpy(&bits[0], host.raw() + at, size);
    std::memcpy(&bits[1], want.raw() + at, size);
    return format("({}, {}) of {}: bits {}, expected {}", i / want.dim(1), i % want.dim(1), want.shape(),
                  bits[0], bits[1]);
  }
  return "";
}

}  // namespace phalanx::test
