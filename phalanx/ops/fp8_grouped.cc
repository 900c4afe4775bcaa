#include "phalanx/ops/fp8_grouped.h"

#include <algorithm>

#include "phalanx/ops/cuda_ops.h"

namespace phalanx {
namespace {

// On the CPU all of this is an expert's own rows and columns, copied, and the ops on them.

Fp8Rows rows_beside(const Rows& x, ScaleFormat format) {
  const int64_t groups = scale_groups(x.data.dim(1));
  return {
      .lines = {.q_RK = Tensor::empty(x.data.shape(), DType::f8e4m3, x.data.device()),
                .scales_SR = Tensor::empty(padded_scales(groups, x.capacity()), DType::f32, x.data.device()),
                .format = format},
      .live = x.live};
}

Fp8Lines columns_beside(const Tensor& x, const Tensor& offsets, ScaleFormat format) {
  const int64_t stored = fp8_columns_capacity(x.dim(0), offsets.numel() - 1);
  const int64_t width = x.dim(1);
  return {.q_RK = Tensor::empty({width, stored}, DType::f8e4m3, x.device()),
          .scales_SR = Tensor::empty(padded_scales(scale_groups(stored), width), DType::f32, x.device()),
          .format = format};
}

// An expert's rows, and where its terms lie in columns.
struct Tokens {
  int64_t expert;
  int64_t begin;
  int64_t end;
  int64_t term;
  int64_t terms;  // a multiple of 128
};

// f(tokens) for each expert, of so many rows.
template <class F>
void for_each_expert(const Tensor& offsets, int64_t rows, const F& f) {
  const auto* const o = offsets.data<const int64_t>();
  int64_t term = 0;
  for (int64_t e = 0; e + 1 < offsets.numel(); ++e) {
    PHX_CHECK(o[e] >= 0 && o[e] <= o[e + 1] && o[e + 1] <= rows, "expert {} has rows {} … {} of {}", e, o[e],
              o[e + 1], rows);
    const int64_t terms = scale_groups(o[e + 1] - o[e]) * kScaleGroup;
    f(Tokens{e, o[e], o[e + 1], term, terms});
    term += terms;
  }
}

// Of each group of terms the scales of some lines.
void copy_scales(const Tensor& from, int64_t first, const Tensor& to, int64_t at, int64_t lines) {
  for (int64_t g = 0; g < to.dim(0); ++g) {
    std::copy_n(from.data<float>() + g * from.dim(1) + first, lines, to.data<float>() + g * to.dim(1) + at);
  }
}

Fp8Lines rows_of(const Fp8Lines& all, int64_t begin, int64_t end) {
  const Tensor scales = Tensor::zeros(padded_scales(all.scales_SR.dim(0), end - begin), DType::f32);
  copy_scales(all.scales_SR, begin, scales, 0, end - begin);
  return {.q_RK = all.q_RK.slice(begin, end), .scales_SR = scales, .format = all.format};
}

void put_rows(const Fp8Lines& rows, const Fp8Lines& to, int64_t begin) {
  const int64_t count = rows.q_RK.dim(0);
  copy_into(to.q_RK.slice(begin, begin + count), rows.q_RK);
  copy_scales(rows.scales_SR, 0, to.scales_SR, begin, count);
}

Fp8Lines columns_of(const Fp8Lines& all, const Tokens& t) {
  const Tensor q = Tensor::empty({all.q_RK.dim(0), t.terms}, DType::f8e4m3);
  for (int64_t d = 0; d < q.dim(0); ++d)
    std::copy_n(all.q_RK.data<f8e4m3>() + d * all.q_RK.dim(1) + t.term, t.terms,
                q.data<f8e4m3>() + d * t.terms);
  const Tensor scales = all.scales_SR.slice(t.term / kScaleGroup, (t.term + t.terms) / kScaleGroup);
  return {.q_RK = q, .scales_SR = scales, .format = all.format};
}

void put_columns(const Fp8Lines& columns, const Fp8Lines& to, const Tokens& t) {
  const int64_t stored = columns.q_RK.dim(1);
  for (int64_t d = 0; d < to.q_RK.dim(0); ++d) {
    auto* const at = to.q_RK.data<f8e4m3>() + d * to.q_RK.dim(1) + t.term;
    std::fill_n(std::copy_n(columns.q_RK.data<f8e4m3>() + d * stored, stored, at), t.terms - stored,
                f8e4m3{});
  }
  copy_into(to.scales_SR.slice(t.term / kScaleGroup, (t.term + t.terms) / kScaleGroup), columns.scales_SR);
}

Fp8Blocks blocks_of(const Fp8Blocks& all, int64_t e) {
  const auto matrix = [e](const Tensor& t) { return t.slice(e, e + 1).view({t.dim(1), t.dim(2)}); };
  return {.q_NK = matrix(all.q_NK), .scales = matrix(all.scales)};
}

void check_rows(const Fp8Rows& x) {
  const Tensor& q = x.lines.q_RK;
  PHX_CHECK(x.lines.scales_SR.shape() == padded_scales(scale_groups(q.dim(1)), q.dim(0)),
            "rows {} with scales {}", q.shape(), x.lines.scales_SR.shape());
}

void check_columns(const Fp8Lines& x, int64_t lines, int64_t terms) {
  PHX_CHECK(x.q_RK.shape() == Shape({lines, terms}) && terms % kScaleGroup == 0 &&
                x.scales_SR.shape() == padded_scales(terms / kScaleGroup, lines),
            "columns by expert {} with scales {}, of {} lines", x.q_RK.shape(), x.scales_SR.shape(), lines);
}

}  // namespace

Fp8Rows fp8_rows(const Rows& x, ScaleFormat format) {
  Fp8Rows out = rows_beside(x, format);
  if constexpr (kHaveCuda) {
    if (x.data.on_cuda()) {
      cuda::fp8_live_rows_into(x, out.lines);
      return out;
    }
  }
  put_rows(fp8_rows(x.data.slice(0, x.count()), format), out.lines, 0);
  return out;
}

Fp8Lines fp8_grouped_columns(const Rows& x, const Tensor& offsets, ScaleFormat format) {
  Fp8Lines out = columns_beside(x.data, offsets, format);
  if constexpr (kHaveCuda) {
    if (x.data.on_cuda()) {
      cuda::fp8_grouped_columns_into(x.data, offsets, nullptr, out);
      return out;
    }
  }
  for_each_expert(offsets, x.capacity(), [&](const Tokens& t) {
    put_columns(fp8_columns(x.data.slice(t.begin, t.end), format), out, t);
  });
  return out;
}

Fp8Lines fp8_grouped_columns(const Fp8Rows& x, const Tensor& offsets) {
  PHX_CHECK(x.lines.format == ScaleFormat::ue8m0, "columns of rows whose scales are not powers of two");
  check_rows(x);
  Fp8Lines out = columns_beside(x.lines.q_RK, offsets, x.lines.format);
  if constexpr (kHaveCuda) {
    if (x.lines.q_RK.on_cuda()) {
      cuda::fp8_grouped_columns_into(x.lines, offsets, out);
      return out;
    }
  }
  for_each_expert(offsets, x.lines.q_RK.dim(0), [&](const Tokens& t) {
    put_columns(fp8_columns(rows_of(x.lines, t.begin, t.end)), out, t);
  });
  return out;
}

Fp8GroupedRowsAndColumns fp8_grouped_rows_and_columns(const Rows& x, const Tensor& offsets,
                                                      ScaleFormat format) {
  Fp8GroupedRowsAndColumns out = {rows_beside(x, format), columns_beside(x.data, offsets, format)};
  if constexpr (kHaveCuda) {
    if (x.data.on_cuda()) {
      cuda::fp8_grouped_columns_into(x.data, offsets, &out.rows.lines, out.columns);
      return out;
    }
  }
  for_each_expert(offsets, x.capacity(), [&](const Tokens& t) {
    const Fp8RowsAndColumns both = fp8_rows_and_columns(x.data.slice(t.begin, t.end), format);
    put_rows(both.rows, out.rows.lines, t.begin);
    put_columns(both.columns, out.columns, t);
  });
  return out;
}

Rows fp8_grouped_matmul_nt(const Fp8Rows& x, const Fp8Blocks& w, const Tensor& offsets, DType dtype) {
  const Tensor& q = x.lines.q_RK;
  const Shape scales = {w.q_NK.dim(0), scale_groups(w.q_NK.dim(1)), scale_groups(w.q_NK.dim(2))};
  check_rows(x);
  PHX_CHECK(q.dim(1) == w.q_NK.dim(2) && w.scales.shape() == scales && offsets.numel() == w.q_NK.dim(0) + 1,
            "fp8_grouped_matmul_nt of {} and {} with scales {}, {} offsets", q.shape(), w.q_NK.shape(),
            w.scales.shape(), offsets.numel());
  const Rows y = {Tensor::empty({q.dim(0), w.q_NK.dim(1)}, dtype, q.device()), x.live};
  if constexpr (kHaveCuda) {
    if (q.on_cuda()) {
      cuda::fp8_grouped_matmul_nt_into(y.data, x.lines, w, offsets);
      return y;
    }
  }
  for_each_expert(offsets, q.dim(0), [&](const Tokens& t) {
    fp8_matmul_nt_into(y.data.slice(t.begin, t.end), rows_of(x.lines, t.begin, t.end), blocks_of(w, t.expert),
                       Into::replace);
  });
  return y;
}

void fp8_grouped_matmul_tn_into(Tensor dw, const Fp8Lines& dy, const Fp8Lines& x, const Tensor& offsets,
                                Into into) {
  check_columns(dy, dw.dim(1), dy.q_RK.dim(1));
  check_columns(x, dw.dim(2), dy.q_RK.dim(1));
  PHX_CHECK(offsets.numel() == dw.dim(0) + 1, "{} offsets of {} experts", offsets.numel(), dw.dim(0));
  if constexpr (kHaveCuda) {
    if (dw.on_cuda()) return cuda::fp8_grouped_matmul_tn_into(dw, dy, x, offsets, into);
  }
  for_each_expert(offsets, dy.q_RK.dim(1), [&](const Tokens& t) {
    fp8_matmul_nt_into(dw.slice(t.expert, t.expert + 1).view({dw.dim(1), dw.dim(2)}), columns_of(dy, t),
                       columns_of(x, t), into);
  });
}

}  // namespace phalanx
