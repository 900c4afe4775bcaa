// The CUDA twins against what they move: bytes a second beside a plain copy's, operations a second of
// products, and what the host pays to queue one small op. Sizes are several times the cache.
#include <array>
#include <chrono>

#include "bench/cuda_bench.h"
#include "phalanx/ops/attention.h"
#include "phalanx/ops/bias.h"
#include "phalanx/ops/cross_entropy.h"
#include "phalanx/ops/dropout.h"
#include "phalanx/ops/elementwise.h"
#include "phalanx/ops/embedding.h"
#include "phalanx/ops/gelu.h"
#include "phalanx/ops/layernorm.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/ops/optimizer.h"
#include "phalanx/ops/rmsnorm.h"
#include "phalanx/ops/rope.h"
#include "phalanx/ops/swiglu.h"

namespace phalanx::bench {
namespace {

void norms(Table& table) {
  for (const auto& [t, d] : {std::pair<int64_t, int64_t>(16384, 4096), {131072, 512}}) {
    const std::string shape = format("[{}, {}]", t, d);
    const Tensor x = random({t, d}, DType::f32);
    const Tensor dy = random({t, d}, DType::f32);
    const Tensor w = random({d}, DType::f32);
    const Tensor dw = Tensor::zeros({d}, DType::f32, kGpu);
    const RmsNormed out = rmsnorm(x, w, 1e-5);
    table.moves("rmsnorm", shape, 2 * t * d, [&] { (void)rmsnorm(x, w, 1e-5); });
    table.moves("rmsnorm backward", shape, 3 * t * d,
                [&] { (void)rmsnorm_backward(dy, x, w, out.inv_rms_T, dw); });
  }
}

void gates(Table& table) {
  const int64_t t = 16384;
  const int64_t f = 4096;
  const Rows x = all_rows(random({t, 2 * f}, DType::f32));
  const Rows dy = all_rows(random({t, f}, DType::f32));
  table.moves("swiglu", "[16384, 2·4096]", 3 * t * f, [&] { (void)swiglu(x); });
  table.moves("swiglu backward", "[16384, 2·4096]", 5 * t * f, [&] { (void)swiglu_backward(dy, x); });
}

void losses(Table& table) {
  const int64_t t = 8192;
  const int64_t v = 50304;
  const Tensor logits = random({t, v}, DType::f32);
  const Tensor targets = random_ids(t, v);
  const Tensor kept = cross_entropy(logits, targets).log_sum_exp_T2;
  table.moves("cross-entropy", "[8192, 50304]", t * v, [&] { (void)cross_entropy(logits, targets); });
  table.moves("cross-entropy backward", "[8192, 50304]", 2 * t * v,
              [&] { cross_entropy_backward_into(logits, targets, kept, 1e-3); });
}

void embeddings(Table& table) {
  const int64_t t = 65536;
  const int64_t v = 50304;
  const int64_t d = 2048;
  const Tensor weights = random({v, d}, DType::f32);
  const Tensor dy = random({t, d}, DType::f32);
  const Tensor tokens = random_ids(t, v);
  table.moves("embedding", "65536 of 50304, 2048", 2 * t * d, [&] { (void)embedding(weights, tokens); });
  // About 73 % of the rows are met at least once; they are read and written.
  table.moves("embedding backward", "65536 of 50304, 2048", t * d + 2 * v * d * 73 / 100,
              [&] { embedding_backward_into(weights, dy, tokens); });
}

// bf16, as training will have them.
void narrow_ops(Table& table) {
  constexpr DType kType = DType::bf16;
  const int64_t t = 16384;
  const int64_t d = 4096;
  const std::string shape = "[16384, 4096] bf16";
  const Tensor x = random({t, d}, kType);
  const Tensor dy = random({t, d}, kType);
  const Tensor w = random({d}, kType);
  const Tensor dw = Tensor::zeros({d}, DType::f32, kGpu);
  const auto moves = [&](const std::string& op, int64_t rows, const std::function<void()>& f) {
    table.moves(op, shape, rows * d, f, kType);
  };
  moves("add", 3 * t, [&] { (void)add(x, dy); });
  moves("add_bias_into", 2 * t, [&] { add_bias_into(x, w); });
  moves("bias backward", t, [&] { bias_backward_into(dw, dy); });
  moves("gelu, tanh", 2 * t, [&] { (void)gelu(x, Gelu::tanh); });
  moves("gelu backward, tanh", 3 * t, [&] { (void)gelu_backward(dy, x, Gelu::tanh); });
  const RmsNormed rms = rmsnorm(x, w, 1e-5);
  moves("rmsnorm", 2 * t, [&] { (void)rmsnorm(x, w, 1e-5); });
  moves("rmsnorm backward", 3 * t, [&] { (void)rmsnorm_backward(dy, x, w, rms.inv_rms_T, dw); });
  const LayerNormed layer = layernorm(x, w, w, 1e-5);
  moves("layernorm", 2 * t, [&] { (void)layernorm(x, w, w, 1e-5); });
  moves("layernorm backward", 3 * t, [&] { (void)layernorm_backward(dy, x, w, layer, {dw, dw}); });
  const Tensor positions = random_ids(t, 4096);
  const Rotation turns = rotation(10000, 128);
  moves("rope, heads of 128", 2 * t, [&] { rope_into(x, positions, 128, turns); });
  const Tensor rows = Tensor::zeros({t}, DType::i64, kGpu);
  moves("dropout", 2 * t, [&] { (void)dropout(x, rows, {RandomStream(1, "x"), 1, 0.1}); });
}

void updates(Table& table) {
  const int64_t n = 1 << 28;
  const Tensor w = random({n}, DType::f32);
  const Tensor g = random({n}, DType::f32);
  const Tensor m = Tensor::zeros({n}, DType::f32, kGpu);
  const Tensor v = Tensor::zeros({n}, DType::f32, kGpu);
  table.moves("adamw", "2^28", 7 * n, [&] { adamw_into({w, m, v, g}, 1, {.lr = 1e-3}); });
  table.moves("sum_of_squares", "2^28", n, [&] { (void)sum_of_squares(g); });
}

// The oracle, forward; half of the pairs meet.
void attentions(Table& table) {
  const int64_t t = 4096;
  const AttentionConfig config = {.heads = 16, .kv_heads = 16, .head_dim = 128, .scale = 0.09};
  const Tensor q = random({t, 2048}, DType::f32);
  const Tensor k = random({t, 2048}, DType::f32);
  const Tensor dy = random({t, 2048}, DType::f32);
  const std::array<int64_t, 2> ends = {0, t};
  const Tensor offsets = Tensor::of(Shape{2}, std::span<const int64_t>(ends));
  const double pairs = 0.5 * static_cast<double>(t * t) * 16 * 128;
  const Attended out = attention(q, k, k, offsets, config);
  table.multiplies("attention, f32", "4096, 16 heads of 128", 4 * pairs,
                   [&] { (void)attention(q, k, k, offsets, config); });
  table.multiplies("attention backward, f32", "4096, 16 heads of 128", 10 * pairs,
                   [&] { (void)attention_backward(dy, q, k, k, out, offsets, config); });
}

void products(Table& table) {
  const int64_t n = 4096;
  const double operations = 2.0 * n * n * n;
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    const Tensor a = random({n, n}, dtype);
    const Tensor b = random({n, n}, dtype);
    const Tensor c = Tensor::zeros({n, n}, dtype == DType::bf16 ? DType::f32 : dtype, kGpu);
    const std::string shape = format("4096³ {}", dtype_name(dtype));
    table.multiplies("matmul", shape, operations, [&] { (void)matmul(a, b); });
    table.multiplies("matmul_nt", shape, operations, [&] { (void)matmul_nt(a, b); });
    table.multiplies("matmul_tn_into", shape, operations, [&] { matmul_tn_into(c, a, b); });
  }
}

// Microseconds of the host to queue one small op: allocation, launch, release.
double queueing_us() {
  const Tensor x = random({8, 64}, DType::f32);
  const Tensor w = random({64}, DType::f32);
  constexpr int kOps = 20'000;
  double best = 1e9;
  for (int round = 0; round < 3; ++round) {
    current_stream().synchronise();
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < kOps; ++i) (void)rmsnorm(x, w, 1e-5);
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
    best = std::min(best, took.count() / kOps);
  }
  current_stream().synchronise();
  return best;
}

int run(std::span<char*> arguments) {
  const auto begin = std::chrono::steady_clock::now();
  (void)cuda_initialise({.reserve_bytes = size_t{16} << 30});
  Stream stream(kGpu);
  const StreamScope scope(stream);
  const std::chrono::duration<double> start = std::chrono::steady_clock::now() - begin;
  cudaDeviceProp gpu;
  cuda::check(cudaGetDeviceProperties(&gpu, kGpu.index), "cudaGetDeviceProperties");
  Report report(std::string("cuda_ops, ") + gpu.name);
  Table table(report);
  copies(table);
  norms(table);
  gates(table);
  losses(table);
  embeddings(table);
  narrow_ops(table);
  updates(table);
  attentions(table);
  products(table);
  const int status = report.finish(arguments);
  std::printf("queueing one small op: %.2f us of the host; start: %.2f s\n", queueing_us(), start.count());
  return status;
}

}  // namespace
}  // namespace phalanx::bench

int main(int argc, char** argv) {
  try {
    return phalanx::bench::run({argv, static_cast<size_t>(argc)});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
