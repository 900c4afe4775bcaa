#include "phalanx/ops/route.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <span>

#include "phalanx/base/trace.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/route.cc"
#include "hwy/foreach_target.h"
#include "phalanx/ops/simd-inl.h"
#include "phalanx/ops/simd_math-inl.h"
#include "phalanx/tensor/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

// Keeps a token whose scores all vanish (sigmoid) from dividing by zero.
constexpr double kTiny = 1e-20;

// Experts come by the power of two: with vectors of at most 8, rows of 8 already end in a whole one.
template <class T>
using Tag = hn::CappedTag<T, 8>;

template <class T>
void score_row(Scores kind, const T* logits, int64_t experts, T* scores) {
  const Tag<T> d;
  if (kind == Scores::sigmoid) {
    for_lanes(d, experts, [&](auto at, int64_t i) PHX_LANES {
      at.store(logistic(d, at.load(d, logits + i)), d, scores + i);
    });
    return;
  }
  const auto max = hn::Set(d, max_lanes(d, experts, logits));
  const T sum = sum_lanes(d, experts, [&](auto at, int64_t i, auto acc) PHX_LANES {
    const auto e = exp(d, hn::Sub(at.load(d, logits + i), max));
    at.store(e, d, scores + i);
    return hn::Add(acc, e);
  });
  const auto divisor = hn::Set(d, sum);
  for_lanes(d, experts, [&](auto at, int64_t i) PHX_LANES {
    at.store(hn::Div(at.load(d, scores + i), divisor), d, scores + i);
  });
}

// What is behind all that may be chosen, and what is behind all scores: NaN counts as that.
template <class T>
constexpr T kTaken = -std::numeric_limits<T>::infinity();
template <class T>
constexpr T kWorst = std::numeric_limits<T>::lowest();

// The scores to choose by, in whole vectors: biased, if there is a bias.
template <class T>
void fill(std::span<const T> scores, const T* bias, std::span<T> left) {
  const Tag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::StoreU(hn::Set(d, kTaken<T>), d, left.data() + left.size() - lanes);
  for_lanes(d, static_cast<int64_t>(scores.size()), [&](auto at, int64_t i) PHX_LANES {
    const auto s = at.load(d, scores.data() + i);
    const auto biased = bias ? hn::Add(s, at.load(d, bias + i)) : s;
    at.store(hn::IfThenElse(hn::Eq(biased, biased), biased, hn::Set(d, kWorst<T>)), d, left.data() + i);
  });
}

// The sum of the two largest.
template <class T>
T best_two(std::span<const T> scores) {
  T best = kTaken<T>;
  T second = kTaken<T>;
  for (const T s : scores) {
    second = std::max(second, std::min(s, best));
    best = std::max(best, s);
  }
  return std::max(scores.size() > 1 ? best + second : best, kWorst<T>);
}

// Leaves the best groups alone to choose from. `sums` is scratch, [groups].
template <class T>
void keep_best_groups(std::span<T> left, int top_groups, std::span<T> sums) {
  const size_t size = left.size() / sums.size();
  for (size_t g = 0; g < sums.size(); ++g) sums[g] = best_two<T>(left.subspan(g * size, size));
  for (size_t g = 0; g < sums.size(); ++g) {
    int better = 0;
    for (size_t other = 0; other < sums.size(); ++other) {
      if (sums[other] > sums[g] || (sums[other] == sums[g] && other < g)) ++better;
    }
    if (better >= top_groups) std::ranges::fill(left.subspan(g * size, size), kTaken<T>);
  }
}

// The k largest, best first, ties to the lower expert. Takes them from `left`, which is whole vectors.
template <class T>
void choose(std::span<T> left, std::span<int64_t> chosen) {
  const Tag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t& c : chosen) {
    const auto best = hn::Set(d, max_lanes(d, static_cast<int64_t>(left.size()), left.data()));
    T* group = left.data();
    while (hn::AllFalse(d, hn::Eq(hn::LoadU(d, group), best))) group += lanes;
    const auto v = hn::LoadU(d, group);
    const auto first = hn::FindFirstTrue(d, hn::Eq(v, best));
    c = group - left.data() + static_cast<int64_t>(first);
    const auto here = hn::Eq(hn::Iota(d, T{0}), hn::Set(d, static_cast<T>(first)));
    hn::StoreU(hn::IfThenElse(here, hn::Set(d, kTaken<T>), v), d, group);
  }
}

template <class T>
void forward(const Tensor& logits, const RoutingConfig& config, const Tensor& bias, const Routing& out) {
  const int64_t experts = logits.dim(1);
  const int64_t k = config.top_k;
  const T* const in = logits.data<T>();
  T* const scores = out.scores_TE.data<T>();
  const T* const bias_d = bias.defined() ? bias.data<T>() : nullptr;
  T* const weights = out.weights_TK.data<T>();
  int64_t* const idx = out.topk_idx_TK.data<int64_t>();
  const size_t lanes = hn::Lanes(Tag<T>());
  const size_t whole = (static_cast<size_t>(experts) + lanes - 1) / lanes * lanes;
  const auto groups = static_cast<size_t>(config.groups);
  const Scratch<T> scratch(static_cast<int64_t>(whole + groups));
  parallel_for(logits.rows(), block_rows(experts), [&](int64_t begin, int64_t end) HWY_ATTR {
    const std::span<T> left(scratch.mine(), whole);
    for (int64_t r = begin; r < end; ++r) {
      T* s = scores + r * experts;
      T* w = weights + r * k;
      const std::span chosen(idx + r * k, static_cast<size_t>(k));
      score_row(config.scores, in + r * experts, experts, s);
      fill<T>({s, static_cast<size_t>(experts)}, bias_d, left);
      if (config.top_groups < config.groups) {
        keep_best_groups<T>(left.first(static_cast<size_t>(experts)), config.top_groups,
                            {left.data() + whole, groups});
      }
      choose<T>(left, chosen);
      T sum = static_cast<T>(kTiny);
      for (const int64_t e : chosen) sum += s[e];
      const T factor = static_cast<T>(config.scaling) / (config.normalise ? sum : T{1});
      for (int64_t i = 0; i < k; ++i) w[i] = s[idx[r * k + i]] * factor;
    }
  });
}

// dscores becomes dlogits.
template <class T>
void score_row_backward(Scores kind, const T* scores, int64_t experts, T* grad) {
  const Tag<T> d;
  if (kind == Scores::sigmoid) {
    for_lanes(d, experts, [&](auto at, int64_t i) PHX_LANES {
      const auto s = at.load(d, scores + i);
      const auto slope = hn::Mul(s, hn::Sub(hn::Set(d, T{1}), s));
      at.store(hn::Mul(at.load(d, grad + i), slope), d, grad + i);
    });
    return;
  }
  const T dot = sum_lanes(d, experts, [&](auto at, int64_t i, auto acc) PHX_LANES {
    return hn::MulAdd(at.load(d, grad + i), at.load(d, scores + i), acc);
  });
  for_lanes(d, experts, [&](auto at, int64_t i) PHX_LANES {
    const auto centred = hn::Sub(at.load(d, grad + i), hn::Set(d, dot));
    at.store(hn::Mul(at.load(d, scores + i), centred), d, grad + i);
  });
}

// With s the sum of the chosen scores and w_i = c·p_i/s: dp_i = (c·dw_i − Σ_j dw_j·w_j) / s. dlogits comes
// holding the gradient of the scores.
template <class T>
void backward(const Tensor& dweights, const Routing& routing, const RoutingConfig& config,
              const Tensor& dlogits) {
  const int64_t experts = dlogits.dim(1);
  const int64_t k = dweights.dim(1);
  const T* const scores = routing.scores_TE.data<T>();
  const T* const weights = routing.weights_TK.data<T>();
  const T* const dweights_d = dweights.data<T>();
  const int64_t* const chosen = routing.topk_idx_TK.data<int64_t>();
  T* const grad = dlogits.data<T>();
  for_rows<T>(dlogits.rows(), experts, [&](auto, int64_t r) HWY_ATTR {
    const T* s = scores + r * experts;
    const T* w = weights + r * k;
    const T* dw = dweights_d + r * k;
    const int64_t* e = chosen + r * k;
    T* d = grad + r * experts;
    T sum = static_cast<T>(kTiny);
    T dot = 0;
    for (int64_t i = 0; i < k; ++i) {
      sum += s[e[i]];
      dot += dw[i] * w[i];
    }
    for (int64_t i = 0; i < k; ++i) {
      const T scaled = static_cast<T>(config.scaling) * dw[i];
      d[e[i]] += config.normalise ? (scaled - dot) / sum : scaled;
    }
    score_row_backward(config.scores, s, experts, d);
  });
}

void route_kernel(const Tensor& logits, const RoutingConfig& config, const Tensor& bias, const Routing& out) {
  visit_float(logits.dtype(), [&](auto t) { forward<decltype(t)>(logits, config, bias, out); });
}

void route_backward_kernel(const Tensor& dweights, const Routing& routing, const RoutingConfig& config,
                           const Tensor& dlogits) {
  visit_float(dlogits.dtype(), [&](auto t) { backward<decltype(t)>(dweights, routing, config, dlogits); });
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(route_kernel);
HWY_EXPORT(route_backward_kernel);
}  // namespace

Routing route(const Tensor& logits, const RoutingConfig& config, const Tensor& bias) {
  const int64_t k = config.top_k;
  const int64_t experts = logits.dim(1);
  PHX_CHECK(config.groups >= 1 && experts % config.groups == 0, "{} experts in {} groups", experts,
            config.groups);
  PHX_CHECK(config.top_groups >= 1 && config.top_groups <= config.groups, "top {} of {} groups",
            config.top_groups, config.groups);
  PHX_CHECK(k >= 1 && k <= experts / config.groups * config.top_groups,
            "top {} of {} experts in {} of {} groups", k, experts, config.top_groups, config.groups);
  PHX_CHECK(!bias.defined() || (bias.numel() == experts && bias.dtype() == logits.dtype()), "bias {} of {}",
            bias.shape(), logits.shape());
  if constexpr (kHaveCuda) {
    if (logits.on_cuda()) return cuda::route(logits, config, bias);
  }
  const Routing out = {Tensor::empty({logits.rows(), k}, DType::i64),
                       Tensor::empty({logits.rows(), k}, logits.dtype()),
                       Tensor::empty(logits.shape(), logits.dtype())};
  const TraceSpan span(TraceKind::elementwise, "route", 2 * logits.bytes());
  HWY_DYNAMIC_DISPATCH(route_kernel)(logits, config, bias, out);
  return out;
}

Tensor route_backward(const Tensor& dweights, const Tensor& dscores, const Routing& routing,
                      const RoutingConfig& config) {
  const Tensor& scores = routing.scores_TE;
  PHX_CHECK(dweights.shape() == routing.weights_TK.shape(), "route_backward of {} for {}", dweights.shape(),
            routing.weights_TK.shape());
  PHX_CHECK(!dscores.defined() || dscores.shape() == scores.shape(), "gradient {} of scores {}",
            dscores.shape(), scores.shape());
  if constexpr (kHaveCuda) {
    if (scores.on_cuda()) return cuda::route_backward(dweights, dscores, routing, config);
  }
  const Tensor dlogits = Tensor::empty(scores.shape(), scores.dtype());
  const TraceSpan span(TraceKind::elementwise, "route_backward", 3 * scores.bytes());
  if (dscores.defined()) {
    std::memcpy(dlogits.raw(), dscores.raw(), dlogits.bytes());
  } else {
    std::memset(dlogits.raw(), 0, dlogits.bytes());
  }
  HWY_DYNAMIC_DISPATCH(route_backward_kernel)(dweights, routing, config, dlogits);
  return dlogits;
}

}  // namespace phalanx
#endif
