#include "phalanx/base/trace.h"
#include "phalanx/ep/layout.h"
#include "phalanx/ops/simd_targets.h"
#include "phalanx/ops/stream_copy.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ep/sum_rows.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "phalanx/ops/stored-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

using ep::Layout;
using ep::Pairs;

// How far ahead rows are fetched; those of one rank mostly follow each other. (docs/benchmarks.md, Combine)
constexpr int64_t kAhead = 2048;  // bytes
constexpr int64_t kCacheLine = 64;

// out = Σ of n elements at each of `in`.
template <class S>
void sum_row(std::span<const typename S::Stored* const> in, int64_t n, bool stream, typename S::Stored* out) {
  const typename S::D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  constexpr auto kLine = kCacheLine / static_cast<int64_t>(sizeof(typename S::Stored));
  constexpr auto kFar = kAhead / static_cast<int64_t>(sizeof(typename S::Stored));
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    for (const auto* const x : in) {
      for (int64_t j = kFar; j < kFar + 4 * lanes; j += kLine) hwy::Prefetch(x + i + j);
    }
    auto a = S::load(Whole{}, d, in[0] + i);
    auto b = S::load(Whole{}, d, in[0] + i + lanes);
    auto c = S::load(Whole{}, d, in[0] + i + 2 * lanes);
    auto e = S::load(Whole{}, d, in[0] + i + 3 * lanes);
    for (const auto* const x : in.subspan(1)) {
      a = hn::Add(a, S::load(Whole{}, d, x + i));
      b = hn::Add(b, S::load(Whole{}, d, x + i + lanes));
      c = hn::Add(c, S::load(Whole{}, d, x + i + 2 * lanes));
      e = hn::Add(e, S::load(Whole{}, d, x + i + 3 * lanes));
    }
    if (stream) {
      S::stream(a, d, out + i);
      S::stream(b, d, out + i + lanes);
      S::stream(c, d, out + i + 2 * lanes);
      S::stream(e, d, out + i + 3 * lanes);
    } else {
      S::store(Whole{}, a, d, out + i);
      S::store(Whole{}, b, d, out + i + lanes);
      S::store(Whole{}, c, d, out + i + 2 * lanes);
      S::store(Whole{}, e, d, out + i + 3 * lanes);
    }
  }
  for_lanes(d, n - i, [&](auto at, int64_t j) PHX_LANES {
    auto sum = S::load(at, d, in[0] + i + j);
    for (const auto* const x : in.subspan(1)) sum = hn::Add(sum, S::load(at, d, x + i + j));
    S::store(at, sum, d, out + i + j);
  });
}

template <class S>
void sum_all(const Layout& layout, std::span<const std::byte* const> from, std::span<const Tensor> first,
             const Tensor& out) {
  const int64_t width = out.row_size();
  const bool stream = ep::past_caches(layout, out) && can_stream(out.raw(), ep::row_bytes(out));
  auto* const to = reinterpret_cast<typename S::Stored*>(out.raw());
  parallel_for(out.rows(), block_rows(width), [&](int64_t begin, int64_t end) HWY_ATTR {
    PooledVector<const typename S::Stored*> in;
    for (int64_t t = begin; t < end; ++t) {
      const Pairs pairs(layout, t);
      in.clear();
      for (const Tensor& x : first) {
        in.push_back(reinterpret_cast<const typename S::Stored*>(x.raw()) + t * width);
      }
      for (size_t p = 0; p < pairs.ranks.size(); ++p) {
        const auto* base = from[static_cast<size_t>(pairs.ranks[p])];
        in.push_back(reinterpret_cast<const typename S::Stored*>(base) + pairs.rows[p] * width);
      }
      if (in.empty()) {
        std::fill_n(to + t * width, width, typename S::Stored{0});
      } else {
        sum_row<S>(in, width, stream, to + t * width);
      }
    }
    stream_fence();
  });
}

void sum_kernel(const Layout& layout, std::span<const std::byte* const> from, std::span<const Tensor> first,
                const Tensor& out) {
  visit_stored(out.dtype(), [&](auto stored) { sum_all<decltype(stored)>(layout, from, first, out); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx::ep {
namespace {
HWY_EXPORT(sum_kernel);
}  // namespace

void sum_rows(const Layout& layout, std::span<const std::byte* const> from, const Tensor& out,
              std::span<const Tensor> first) {
  const TraceSpan span(TraceKind::elementwise, "sum_rows",
                       out.bytes() + static_cast<size_t>(layout.pairs()) * row_bytes(out));
  HWY_DYNAMIC_DISPATCH(sum_kernel)(layout, from, first, out);
}

}  // namespace phalanx::ep
#endif
