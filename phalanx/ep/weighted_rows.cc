#include "phalanx/ep/weighted_rows.h"

#include "phalanx/base/pooled.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ep/weighted_rows.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/stored-inl.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

// One token's rows, and what each counts.
template <class S>
struct Terms {
  using Value = hn::TFromD<typename S::D>;
  PooledVector<const typename S::Stored*> rows;
  PooledVector<Value> weights;
};

template <class S>
void sum_terms(const Terms<S>& terms, int64_t width, typename S::Stored* out) {
  const typename S::D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const size_t n = terms.rows.size();
  int64_t i = 0;
  for (; i + 4 * lanes <= width; i += 4 * lanes) {
    auto a = hn::Zero(d);
    auto b = a;
    auto c = a;
    auto e = a;
    for (size_t j = 0; j < n; ++j) {
      const auto* const x = terms.rows[j] + i;
      const auto w = hn::Set(d, terms.weights[j]);
      a = hn::Add(a, hn::Mul(w, S::load(Whole{}, d, x)));
      b = hn::Add(b, hn::Mul(w, S::load(Whole{}, d, x + lanes)));
      c = hn::Add(c, hn::Mul(w, S::load(Whole{}, d, x + 2 * lanes)));
      e = hn::Add(e, hn::Mul(w, S::load(Whole{}, d, x + 3 * lanes)));
    }
    S::store(Whole{}, a, d, out + i);
    S::store(Whole{}, b, d, out + i + lanes);
    S::store(Whole{}, c, d, out + i + 2 * lanes);
    S::store(Whole{}, e, d, out + i + 3 * lanes);
  }
  for_lanes(d, width - i, [&](auto at, int64_t l) PHX_LANES {
    auto sum = hn::Zero(d);
    for (size_t j = 0; j < n; ++j) {
      sum = hn::Add(sum, hn::Mul(hn::Set(d, terms.weights[j]), S::load(at, d, terms.rows[j] + i + l)));
    }
    S::store(at, sum, d, out + i + l);
  });
}

template <class S>
void sum_tokens(std::span<const std::byte* const> rows, const Tensor& weights, const Tensor& out) {
  using Value = typename Terms<S>::Value;
  const int64_t width = out.row_size();
  const int64_t k = weights.dim(1);
  const Value* const w = weights.data<Value>();
  auto* const to = reinterpret_cast<typename S::Stored*>(out.raw());
  parallel_for(out.rows(), block_rows(width * (k + 1)), [&](int64_t begin, int64_t end) HWY_ATTR {
    Terms<S> terms;
    for (int64_t t = begin; t < end; ++t) {
      terms.rows.clear();
      terms.weights.clear();
      for (int64_t i = t * k; i < (t + 1) * k; ++i) {
        const std::byte* const row = rows[static_cast<size_t>(i)];
        if (!row) continue;
        terms.rows.push_back(reinterpret_cast<const typename S::Stored*>(row));
        terms.weights.push_back(w[i]);
      }
      sum_terms<S>(terms, width, to + t * width);
    }
  });
}

void weighted_kernel(std::span<const std::byte* const> rows, const Tensor& weights, const Tensor& out) {
  visit_stored(out.dtype(), [&](auto stored) { sum_tokens<decltype(stored)>(rows, weights, out); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx::ep {
namespace {
HWY_EXPORT(weighted_kernel);
}  // namespace

void weighted_rows(std::span<const std::byte* const> rows, const Tensor& weights, const Tensor& out) {
  PHX_CHECK(std::ssize(rows) == weights.numel() && weights.rows() == out.rows(),
            "{} rows and weights {} of {} tokens", rows.size(), weights.shape(), out.rows());
  const TraceSpan span(
      TraceKind::elementwise, "weighted_rows",
      out.bytes() + rows.size() * static_cast<size_t>(out.row_size()) * dtype_size(out.dtype()));
  HWY_DYNAMIC_DISPATCH(weighted_kernel)(rows, weights, out);
}

}  // namespace phalanx::ep
#endif
