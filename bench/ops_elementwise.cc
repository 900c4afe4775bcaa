// How near the ops between matrix products come to the speed of copying as many bytes: time, bandwidth (bytes
// that must be read and written, each once) and its share of a copy's, interleaved in one run, medians.
//   phalanx_bench_ops_elementwise [--threads N] [--json FILE]
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>

#include "bench/report.h"
#include "phalanx/base/parallel_for.h"
#include "phalanx/ops/bias.h"
#include "phalanx/ops/cross_entropy.h"
#include "phalanx/ops/dropout.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/embedding.h"
#include "phalanx/ops/gelu.h"
#include "phalanx/ops/layernorm.h"
#include "phalanx/ops/optimizer.h"
#include "phalanx/ops/permute.h"
#include "phalanx/ops/rmsnorm.h"
#include "phalanx/ops/route.h"
#include "phalanx/ops/swiglu.h"

namespace phalanx::bench {
namespace {

struct Case {
  std::string op;
  Shape shape;
  int64_t bytes;  // read and written
  std::function<void()> run;
};

std::mt19937_64 engine(1);

Tensor random(const Shape& shape) {
  const Tensor t = Tensor::empty(shape, DType::f32);
  std::normal_distribution<float> normal;
  for (float& v : t.span<float>()) v = normal(engine);
  return t;
}

template <class T>
Tensor random_integers(const Shape& shape, T below) {
  const Tensor t = Tensor::empty(shape, dtype_of<T>);
  std::uniform_int_distribution<T> uniform(0, below - 1);
  for (T& v : t.span<T>()) v = uniform(engine);
  return t;
}

Tensor counting(int64_t n) {
  const Tensor t = Tensor::empty({n}, DType::i64);
  std::iota(t.span<int64_t>().begin(), t.span<int64_t>().end(), 0);
  return t;
}

// Norms, residual sums, dropout and biases of a model `d` wide.
void add_narrow(std::vector<Case>& cases, int64_t t, int64_t d) {
  const Shape shape = {t, d};
  const int64_t n = 4 * t * d;
  const Tensor x = random(shape);
  const Tensor dy = random(shape);
  const Tensor w = random({d});
  const Tensor dw = Tensor::zeros({d}, DType::f32);
  const RmsNormed rms = rmsnorm(x, w, 1e-5);
  const LayerNormed layer = layernorm(x, w, w, 1e-5);
  const Tensor rows = counting(t);
  const DropoutSite site = {RandomStream(1, "bench"), 3, 0.1};
  cases.push_back({"add", shape, 3 * n, [=] { (void)add(x, dy); }});
  cases.push_back({"scale_into", shape, 2 * n, [=] { scale_into(x, 1.0); }});
  cases.push_back({"sum_of_squares", shape, n, [=] { (void)sum_of_squares(x); }});
  cases.push_back({"rmsnorm", shape, 2 * n, [=] { (void)rmsnorm(x, w, 1e-5); }});
  cases.push_back(
      {"rmsnorm_backward", shape, 3 * n, [=] { (void)rmsnorm_backward(dy, x, w, rms.inv_rms_T, dw); }});
  cases.push_back({"layernorm", shape, 2 * n, [=] { (void)layernorm(x, w, w, 1e-5); }});
  cases.push_back({"layernorm_backward", shape, 3 * n, [=] {
                     (void)layernorm_backward(dy, x, w, layer, {dw, dw});
                   }});
  cases.push_back({"dropout", shape, 2 * n, [=] { (void)dropout(x, rows, site); }});
  cases.push_back({"add_bias_into", shape, 2 * n, [=] { add_bias_into(dy, dw); }});
  cases.push_back({"bias_backward_into", shape, n, [=] { bias_backward_into(dw, x); }});
}

// The activations between the two products of an MLP `f` wide.
void add_mlp(std::vector<Case>& cases, int64_t t, int64_t f) {
  const Shape shape = {t, f};
  const int64_t n = 4 * t * f;
  const Tensor x = random(shape);
  const Tensor dy = random(shape);
  const Rows gate_up = all_rows(random({t, 2 * f}));
  const Rows dy_rows = all_rows(dy);
  cases.push_back({"gelu erf", shape, 2 * n, [=] { (void)gelu(x, Gelu::erf); }});
  cases.push_back({"gelu erf backward", shape, 3 * n, [=] { (void)gelu_backward(dy, x, Gelu::erf); }});
  cases.push_back({"gelu tanh", shape, 2 * n, [=] { (void)gelu(x, Gelu::tanh); }});
  cases.push_back({"gelu tanh backward", shape, 3 * n, [=] { (void)gelu_backward(dy, x, Gelu::tanh); }});
  cases.push_back({"swiglu", shape, 3 * n, [=] { (void)swiglu(gate_up); }});
  cases.push_back({"swiglu_backward", shape, 5 * n, [=] { (void)swiglu_backward(dy_rows, gate_up); }});
}

void add_loss(std::vector<Case>& cases, int64_t t, int64_t v) {
  const Shape shape = {t, v};
  const int64_t n = 4 * t * v;
  const Tensor logits = random(shape);
  const Tensor targets = random_integers<int32_t>({t}, static_cast<int32_t>(v));
  const Tensor kept = cross_entropy(logits, targets).log_sum_exp_T2;
  const Tensor in_place = random(shape);
  cases.push_back({"cross_entropy", shape, n, [=] { (void)cross_entropy(logits, targets); }});
  cases.push_back({"cross_entropy_backward_into", shape, 2 * n,
                   [=] { cross_entropy_backward_into(in_place, targets, kept, 1.0); }});
}

void add_embedding(std::vector<Case>& cases, int64_t t, int64_t v, int64_t d) {
  const Tensor table = random({v, d});
  const Tensor dtable = random({v, d});
  const Tensor dy = random({t, d});
  const Tensor tokens = random_integers<int32_t>({t}, static_cast<int32_t>(v));
  const int64_t n = 4 * t * d;
  cases.push_back({"embedding", {t, v, d}, 2 * n, [=] { (void)embedding(table, tokens); }});
  cases.push_back(
      {"embedding_backward_into", {t, v, d}, 3 * n, [=] { embedding_backward_into(dtable, dy, tokens); }});
}

void add_experts(std::vector<Case>& cases, int64_t t, int64_t d, int64_t experts, int k) {
  const Shape shape = {t, d};
  const Tensor logits = random({t, experts});
  const RoutingConfig config = {.scores = Scores::softmax, .top_k = k};
  const Routing routing = route(logits, config);
  const Rows topk = all_rows(routing.topk_idx_TK);
  const ExpertOrder order = order_by_expert(topk, static_cast<int>(experts));
  const Rows x = all_rows(random(shape));
  const Rows rows = permute(x, order);
  const Tensor w = routing.weights_TK;
  const int64_t n = 4 * t * d;
  const int64_t scores = 4 * t * experts;
  cases.push_back({"route", {t, experts}, 2 * scores, [=] { (void)route(logits, config); }});
  cases.push_back({"route_backward", {t, experts}, 2 * scores, [=] {
                     (void)route_backward(routing.weights_TK, Tensor(), routing, config);
                   }});
  cases.push_back({"order_by_expert", {t, experts, k}, 3 * 8 * t * k, [=] {
                     (void)order_by_expert(topk, static_cast<int>(experts));
                   }});
  cases.push_back({"permute", {t, d, k}, (1 + k) * n, [=] { (void)permute(x, order); }});
  cases.push_back({"unpermute", {t, d, k}, (1 + k) * n, [=] { (void)unpermute(rows, order, w, x); }});
  const Rows a = {random({t * k, d}), order.live};
  const Rows h = {random({t * k, 2 * d}), order.live};
  cases.push_back({"weighted_swiglu_backward", {t, d, k}, 6 * k * n, [=] {
                     (void)weighted_swiglu_backward(a, h, order, w);
                   }});
}

void add_optimizer(std::vector<Case>& cases, int64_t n) {
  const Tensor w = random({n});
  const Tensor m = Tensor::zeros({n}, DType::f32);
  const Tensor v = Tensor::zeros({n}, DType::f32);
  const Tensor g = random({n});
  cases.push_back({"adamw_into", {n}, 7 * 4 * n, [=] {
                     adamw_into({w, m, v, g}, 1, {.lr = 1e-6, .step = 10});
                   }});
  cases.push_back({"sgd_into", {n}, 3 * 4 * n, [=] { sgd_into(w, g, 1, 1e-6); }});
}

// A copy that moves `bytes` in all, by the threads that ops use.
std::function<void()> copy_of(int64_t bytes) {
  const int64_t half = bytes / 2 / 64 * 64 + 64;
  const Tensor from = Tensor::zeros({half}, DType::u8);
  const Tensor to = Tensor::zeros({half}, DType::u8);
  return [=] {
    parallel_for(half, 32768, [&](int64_t begin, int64_t end) {
      std::memcpy(to.raw() + begin, from.raw() + begin, static_cast<size_t>(end - begin));
    });
  };
}

double seconds(const std::function<void()>& f, int times) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < times; ++i) f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / times;
}

double median(std::vector<double> v) {
  std::ranges::sort(v);
  return v[v.size() / 2];
}

int main(std::span<char*> arguments) {
  int threads = available_cores();
  for (size_t i = 1; i + 1 < arguments.size(); ++i) {
    if (std::string_view(arguments[i]) == "--threads") threads = std::atoi(arguments[i + 1]);
  }
  const ThreadScope scope(threads);
  std::vector<Case> cases;
  for (const auto& [t, d] : {std::pair(768, 128), {1024, 384}}) {
    add_narrow(cases, t, d);
    add_mlp(cases, t, 4 * d);
    add_embedding(cases, t, 65, d);
    add_loss(cases, t, 65);
  }
  add_loss(cases, 256, 50304);
  add_experts(cases, 1024, 384, 8, 2);
  add_experts(cases, 1024, 384, 64, 6);
  add_optimizer(cases, 800'000);
  add_optimizer(cases, 10'700'000);

  constexpr int kRounds = 15;
  std::vector<std::vector<double>> times(cases.size());
  std::vector<std::vector<double>> copies(cases.size());
  std::vector<std::function<void()>> copy;
  for (const Case& c : cases) copy.push_back(copy_of(c.bytes));
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < cases.size(); ++i) {
      const int repeats = static_cast<int>(std::max<int64_t>(1, (int64_t{8} << 20) / cases[i].bytes));
      copies[i].push_back(seconds(copy[i], repeats));
      times[i].push_back(seconds(cases[i].run, repeats));
    }
  }
  Report report(format("elementwise ops, f32, {} threads", threads));
  for (size_t i = 0; i < cases.size(); ++i) {
    const double op = median(times[i]);
    const auto bytes = static_cast<double>(cases[i].bytes);
    report.add({{"op", cases[i].op},
                {"shape", format("{}", cases[i].shape)},
                {"µs", op * 1e6},
                {"GB/s", bytes / op / 1e9},
                {"copy GB/s", bytes / median(copies[i]) / 1e9},
                {"of copy", median(copies[i]) / op}});
  }
  return report.finish(arguments);
}

}  // namespace
}  // namespace phalanx::bench

int main(int argc, char** argv) { return phalanx::bench::main({argv, static_cast<size_t>(argc)}); }
