// Causal attention in bf16 on a GPU: forward, backward and both, at the shapes of models. Operations are
// those of the pairs that meet, half of all, without what backward computes again: 4·T·S·d·H/2 forward where
// heads of values are as wide as those of keys, 2.5 times as many backward.
#include <cstdio>
#include <string>

#include "bench/on_gpu.h"
#include "bench/report.h"
#include "phalanx/ops/attention.h"

namespace phalanx::bench {
namespace {

struct Model {
  const char* name;
  int64_t batch;
  int64_t rows;  // of a sequence
  AttentionConfig config;
  int64_t uneven = 0;  // rows that each other sequence lends to the one before it
};

const Model kModels[] = {
    {"GPT-2 124M", 64, 1024, {.heads = 12, .kv_heads = 12, .head_dim = 64, .scale = 0.125}},
    {"Llama 1.24B", 4, 4096, {.heads = 32, .kv_heads = 8, .head_dim = 64, .scale = 0.125}},
    {"Llama 3.2B", 1, 4096, {.heads = 24, .kv_heads = 8, .head_dim = 128, .scale = 0.088}},
    {"heads of 128", 4, 4096, {.heads = 16, .kv_heads = 16, .head_dim = 128, .scale = 0.088}},
    {"latent", 4, 4096, {.heads = 16, .kv_heads = 16, .head_dim = 192, .scale = 0.072, .value_dim = 128}},
    {"heads of 128, ragged", 4, 4096, {.heads = 16, .kv_heads = 16, .head_dim = 128, .scale = 0.088}, 1000},
};

void measure(Report& report, const Model& model) {
  AttentionConfig c = model.config;
  std::vector<int64_t> ends = {0};
  double pairs = 0;
  for (int64_t b = 0; b < model.batch; ++b) {
    const int64_t rows = model.rows + (b % 2 == 0 ? model.uneven : -model.uneven);
    ends.push_back(ends.back() + rows);
    pairs += 0.5 * static_cast<double>(rows * rows);
  }
  const int64_t t = ends.back();
  const Tensor q = random({t, c.heads * c.head_dim}, DType::bf16);
  const Tensor k = random({t, c.kv_heads * c.head_dim}, DType::bf16);
  const Tensor v = random({t, c.kv_heads * c.values()}, DType::bf16);
  const Tensor dy = random({t, c.heads * c.values()}, DType::bf16);
  const Tensor offsets = Tensor::of(Shape{std::ssize(ends)}, std::span<const int64_t>(ends));
  const double forward_operations = 2 * pairs * static_cast<double>(c.heads * (c.head_dim + c.values()));
  const Attended out = attention(q, k, v, offsets, c);
  const double forward = milliseconds([&] { (void)attention(q, k, v, offsets, c); });
  for (const bool deterministic : {true, false}) {
    c.deterministic = deterministic;
    current_stream().reset_peak();
    const size_t before = current_stream().memory().in_use;
    const double backward = milliseconds([&] { (void)attention_backward(dy, q, k, v, out, offsets, c); });
    const double memory = static_cast<double>(current_stream().memory().peak - before) / 1e9;
    const double both = milliseconds([&] {
      const Attended y = attention(q, k, v, offsets, c);
      (void)attention_backward(dy, q, k, v, y, offsets, c);
    });
    const auto speed = [&](double times, double ms) { return times * forward_operations / ms / 1e9; };
    report.add({{"shape", model.name},
                {"tokens", t},
                {"heads", format("{}/{} of {}/{}", c.heads, c.kv_heads, c.head_dim, c.values())},
                {"deterministic", deterministic ? "yes" : "no"},
                {"forward, ms", forward},
                {"backward, ms", backward},
                {"both, ms", both},
                {"forward, TFLOP/s", speed(1, forward)},
                {"backward, TFLOP/s", speed(2.5, backward)},
                {"both, TFLOP/s", speed(3.5, both)},
                {"backward's memory, GB", memory}});
  }
}

void run(Report& report) {
  for (const Model& model : kModels) measure(report, model);
}

}  // namespace
}  // namespace phalanx::bench

int main(int argc, char** argv) {
  return phalanx::bench::main_on_gpu("attention in bf16", {argv, static_cast<size_t>(argc)},
                                     phalanx::bench::run);
}
