// Attention's speed forward and backward as a share of one core's peak, beside the matrix products alone of
// the same blocks by the two libraries. 4·T²·d·H/2 operations forward (causal), 2.5 times as many backward.
#include <cblas.h>

#include <oneapi/dnnl/dnnl.h>
#include <cmath>
#include <ctime>
#include <functional>
#include <random>

#include "bench/report.h"
#include "phalanx/ops/attention.h"

// The peak: independent chains of fused multiply-adds on the widest vectors.
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/attention.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

double multiply_adds(int64_t steps, float* sink) {
  const hn::ScalableTag<float> d;
  constexpr int kChains = 12;
  hn::Vec<decltype(d)> sum[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) sum[i] = hn::Set(d, static_cast<float>(i));
  const auto a = hn::Set(d, 0.999f);
  const auto b = hn::Set(d, 0.001f);
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = hn::MulAdd(sum[i], a, b);
  }
  auto all = sum[0];
#pragma GCC unroll 12
  for (int i = 1; i < kChains; ++i) all = hn::Add(all, sum[i]);
  *sink = hn::GetLane(hn::SumOfLanes(d, all));
  return 2.0 * kChains * static_cast<double>(hn::Lanes(d)) * static_cast<double>(steps);
}

}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx::bench {
HWY_EXPORT(multiply_adds);

struct Shape {
  int64_t batch, length;
  int heads, kv_heads;
  int64_t head_dim;
};

// Of this thread on the processor, so that other programs on the machine do not count.
double seconds(const std::function<void()>& f) {
  const auto now = [] {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  };
  const double start = now();
  f();
  return now() - start;
}

double median(std::vector<double> v) {
  std::ranges::nth_element(v, v.begin() + std::ssize(v) / 2);
  return v[v.size() / 2];
}

// Row-major C [m, n] = or += A · B, either transposed.
using Gemm = void (*)(bool ta, bool tb, const int64_t (&mnk)[3], const float* a, int64_t lda, const float* b,
                      int64_t ldb, float* c, int64_t ldc, bool accumulate);

void dnnl(bool ta, bool tb, const int64_t (&s)[3], const float* a, int64_t lda, const float* b, int64_t ldb,
          float* c, int64_t ldc, bool accumulate) {
  dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', s[0], s[1], s[2], 1, a, lda, b, ldb, accumulate ? 1 : 0, c, ldc);
}

void openblas(bool ta, bool tb, const int64_t (&s)[3], const float* a, int64_t lda, const float* b,
              int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  const auto i = [](int64_t v) { return static_cast<blasint>(v); };
  cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, i(s[0]), i(s[1]),
              i(s[2]), 1, a, i(lda), b, i(ldb), accumulate ? 1 : 0, c, i(ldc));
}

struct Data {
  Tensor q, k, v, dy, offsets, scores, dscores;
  AttentionConfig config;

  explicit Data(const Shape& s)
      : config{s.heads, s.kv_heads, s.head_dim, 1 / std::sqrt(static_cast<double>(s.head_dim))} {
    const int64_t rows = s.batch * s.length;
    for (Tensor* t : {&q, &dy}) *t = Tensor::empty({rows, s.heads * s.head_dim}, DType::f32);
    for (Tensor* t : {&k, &v}) *t = Tensor::empty({rows, s.kv_heads * s.head_dim}, DType::f32);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (const Tensor* t : {&q, &k, &v, &dy}) {
      for (float& x : t->span<float>()) x = normal(random);
    }
    std::vector<int64_t> o;
    for (int64_t b = 0; b <= s.batch; ++b) o.push_back(b * s.length);
    offsets = Tensor::of(phalanx::Shape{s.batch + 1}, std::span<const int64_t>(o));
    for (Tensor* t : {&scores, &dscores}) *t = Tensor::zeros({64, s.length}, DType::f32);
  }
};

// The products of attention by a library, without softmax: queries in blocks of 64 against all keys that one
// of them sees.
void products(const Shape& s, const Data& x, const Attended& out, const AttentionGradients& g, Gemm gemm,
              bool backward) {
  const int64_t d = s.head_dim;
  const int64_t ldq = s.heads * d;
  const int64_t ldk = s.kv_heads * d;
  float* p = x.scores.data<float>();
  float* ds = x.dscores.data<float>();
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t h = 0; h < s.heads; ++h) {
      for (int64_t i = 0; i < s.length; i += 64) {
        const int64_t rows = std::min<int64_t>(64, s.length - i);
        const int64_t keys = i + rows;
        const int64_t q = (b * s.length + i) * ldq + h * d;
        const int64_t k = b * s.length * ldk + h / (s.heads / s.kv_heads) * d;
        const float* kd = x.k.data<float>() + k;
        gemm(false, true, {rows, keys, d}, x.q.data<float>() + q, ldq, kd, ldk, p, keys, false);
        if (!backward) {
          gemm(false, false, {rows, d, keys}, p, keys, x.v.data<float>() + k, ldk,
               out.y_THd.data<float>() + q, ldq, false);
          continue;
        }
        const float* dy = x.dy.data<float>() + q;
        gemm(false, true, {rows, keys, d}, dy, ldq, x.v.data<float>() + k, ldk, ds, keys, false);
        gemm(true, false, {keys, d, rows}, p, keys, dy, ldq, g.dv_TGd.data<float>() + k, ldk, i > 0);
        gemm(true, false, {keys, d, rows}, ds, keys, x.q.data<float>() + q, ldq, g.dk_TGd.data<float>() + k,
             ldk, i > 0);
        gemm(false, false, {rows, d, keys}, ds, keys, kd, ldk, g.dq_THd.data<float>() + q, ldq, false);
      }
    }
  }
}

void measure(const Shape& s, Report& report) {
  const Data x(s);
  const double forward_operations =
      2.0 * static_cast<double>(s.batch * s.length * s.length * s.head_dim * s.heads);
  Attended out = attention(x.q, x.k, x.v, x.offsets, x.config);
  AttentionGradients g = attention_backward(x.dy, x.q, x.k, x.v, out, x.offsets, x.config);
  struct Way {
    const char* name;
    double operations;
    std::function<void()> run;
    std::vector<double> speeds = {};
    std::vector<double> shares = {};
  };
  std::vector<Way> ways = {
      {"forward", forward_operations, [&] { out = attention(x.q, x.k, x.v, x.offsets, x.config); }},
      {"backward", 2.5 * forward_operations,
       [&] { g = attention_backward(x.dy, x.q, x.k, x.v, out, x.offsets, x.config); }},
      {"both", 3.5 * forward_operations,
       [&] {
         out = attention(x.q, x.k, x.v, x.offsets, x.config);
         g = attention_backward(x.dy, x.q, x.k, x.v, out, x.offsets, x.config);
       }},
      {"both, products alone by oneDNN", 3.5 * forward_operations,
       [&] {
         products(s, x, out, g, dnnl, false);
         products(s, x, out, g, dnnl, true);
       }},
      {"both, products alone by OpenBLAS", 3.5 * forward_operations, [&] {
         products(s, x, out, g, openblas, false);
         products(s, x, out, g, openblas, true);
       }}};
  float sink = 0;
  const auto peak_now = [&] {
    double done = 0;
    const double t = seconds([&] { done = HWY_DYNAMIC_DISPATCH(multiply_adds)(30'000, &sink); });
    return done / t;
  };
  const int repeats = std::clamp(static_cast<int>(2e10 / forward_operations), 3, 15);
  for (int repeat = 0; repeat < repeats; ++repeat) {
    for (Way& w : ways) {
      const int calls = 1 + static_cast<int>(3e7 / w.operations);
      double peak = peak_now();
      const double t = seconds([&] {
        for (int c = 0; c < calls; ++c) w.run();
      });
      peak = (peak + peak_now()) / 2;
      const double speed = w.operations * calls / t;
      w.speeds.push_back(speed);
      w.shares.push_back(speed / peak);
    }
  }
  for (const Way& w : ways) {
    report.add({{"shape", "B=" + std::to_string(s.batch) + " T=" + std::to_string(s.length) +
                              " H=" + std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) +
                              " d=" + std::to_string(s.head_dim)},
                {"what", w.name},
                {"ms", w.operations / median(w.speeds) * 1e3},
                {"GFLOP/s", median(w.speeds) / 1e9},
                {"share of peak", median(w.shares)}});
  }
}

}  // namespace phalanx::bench

int main(int argc, char** argv) {
  phalanx::bench::Report report("attention, f32, one thread");
  for (const phalanx::bench::Shape& s : {phalanx::bench::Shape{12, 64, 4, 4, 32},
                                         {4, 256, 6, 6, 64},
                                         {1, 1024, 8, 2, 64},
                                         {1, 2048, 2, 2, 128}}) {
    phalanx::bench::measure(s, report);
  }
  return report.finish({argv, static_cast<size_t>(argc)});
}
#endif
