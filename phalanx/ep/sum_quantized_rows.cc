#include "phalanx/base/trace.h"
#include "phalanx/ep/layout.h"
#include "phalanx/ops/quantize.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ep/sum_quantized_rows.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/stored-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

using ep::Layout;
using ep::Pairs;

struct Row {
  const uint8_t* q;
  const float* scales;
};

// The rows of a token's pairs.
void find_rows(const Layout& layout, int64_t token, const ep::QuantizedRows& from, int64_t width,
               PooledVector<Row>& rows) {
  const Pairs pairs(layout, token);
  rows.clear();
  for (size_t p = 0; p < pairs.ranks.size(); ++p) {
    const auto r = static_cast<size_t>(pairs.ranks[p]);
    rows.push_back({reinterpret_cast<const uint8_t*>(from.q[r]) + pairs.rows[p] * width,
                    reinterpret_cast<const float*>(from.scales[r]) + pairs.rows[p] * scale_groups(width)});
  }
}

template <class S>
void sum_all(const Layout& layout, const ep::QuantizedRows& from, std::span<const Tensor> first,
             const Tensor& out) {
  const int64_t width = out.row_size();
  auto* const to = reinterpret_cast<typename S::Stored*>(out.raw());
  parallel_for(out.rows(), block_rows(width), [&](int64_t begin, int64_t end) HWY_ATTR {
    PooledVector<Row> rows;
    const hn::ScalableTag<float> d;
    for (int64_t t = begin; t < end; ++t) {
      find_rows(layout, t, from, width, rows);
      for (int64_t group = 0; group < scale_groups(width); ++group) {
        const int64_t start = group * kScaleGroup;
        for_lanes(d, std::min(kScaleGroup, width - start), [&](auto at, int64_t j) PHX_LANES {
          const int64_t i = start + j;
          auto sum = hn::Zero(d);
          for (const Tensor& x : first) {
            const auto* const row = reinterpret_cast<const typename S::Stored*>(x.raw()) + t * width;
            sum = hn::Add(sum, S::load(at, d, row + i));
          }
          for (const Row& row : rows) {
            sum = hn::Add(sum, hn::Mul(E4m3::load(at, d, row.q + i), hn::Set(d, row.scales[group])));
          }
          S::store(at, sum, d, to + t * width + i);
        });
      }
    }
  });
}

void sum_quantized_kernel(const Layout& layout, const ep::QuantizedRows& from, std::span<const Tensor> first,
                          const Tensor& out) {
  visit_floats(out.dtype(), [&](auto stored) { sum_all<decltype(stored)>(layout, from, first, out); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx::ep {
namespace {
HWY_EXPORT(sum_quantized_kernel);
}  // namespace

void sum_quantized_rows(const Layout& layout, const QuantizedRows& from, const Tensor& out,
                        std::span<const Tensor> first) {
  const auto row = static_cast<size_t>(out.row_size() + 4 * scale_groups(out.row_size()));
  const TraceSpan span(TraceKind::elementwise, "sum_quantized_rows",
                       out.bytes() + static_cast<size_t>(layout.pairs()) * row);
  HWY_DYNAMIC_DISPATCH(sum_quantized_kernel)(layout, from, first, out);
}

}  // namespace phalanx::ep
#endif
