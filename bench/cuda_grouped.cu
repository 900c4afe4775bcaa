// Grouped products of experts against one dense product of as many operations, in bf16: both in TFLOP/s, and
// their ratio. Rows are spread over experts evenly, or as 1, 1/2, 1/3, … (Zipf), the order shuffled.
#include <cstdio>
#include <numeric>

#include "bench/on_gpu.h"
#include "bench/report.h"
#include "phalanx/ops/matmul.h"

namespace phalanx::bench {
namespace {

// One matrix of a layer of experts.
struct Layer {
  std::string name;
  int64_t rows;
  int64_t experts;
  int64_t k;  // features in
  int64_t n;  // features out
};

std::vector<int64_t> offsets_of(const Layer& layer, bool zipf) {
  std::vector<double> weights(static_cast<size_t>(layer.experts), 1);
  for (size_t e = 0; zipf && e < weights.size(); ++e) weights[e] = 1.0 / static_cast<double>(e + 1);
  std::ranges::shuffle(weights, std::mt19937(7));
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<int64_t> offsets = {0};
  double before = 0;
  for (const double w : weights) {
    before += w;
    offsets.push_back(std::llround(before / sum * static_cast<double>(layer.rows)));
  }
  return offsets;
}

// A random matrix for each expert, all alike.
Tensor weights_of(const Layer& layer) {
  const Tensor one = random({layer.n, layer.k}, DType::bf16);
  const Tensor all = Tensor::empty({layer.experts, layer.n, layer.k}, DType::bf16, kGpu);
  for (int64_t e = 0; e < layer.experts; ++e) copy_into(all.slice(e, e + 1).view(one.shape()), one);
  return all;
}

class Bench {
 public:
  Bench(Report& report, Layer layer) : report_(report), layer_(std::move(layer)) {}

  void run() {
    const Rows x = all_rows(random({layer_.rows, layer_.k}, DType::bf16));
    const Rows dy = all_rows(random({layer_.rows, layer_.n}, DType::bf16));
    const Tensor w = weights_of(layer_);
    const Tensor one = copied(w.slice(0, 1).view({layer_.n, layer_.k}));
    both(
        "y = x·wᵀ", [&] { (void)matmul_nt(x.data, one); },
        [&](const Tensor& offsets) { (void)grouped_matmul_nt(x, w, offsets); });
    both(
        "dx = dy·w", [&] { (void)matmul(dy.data, one); },
        [&](const Tensor& offsets) { (void)grouped_matmul(dy, w, offsets); });
    weight_gradient("dw = dyᵀ·x, bf16", DType::bf16, Into::replace, dy, x);
    weight_gradient("dw = dyᵀ·x, f32", DType::f32, Into::replace, dy, x);
    weight_gradient("dw += dyᵀ·x, f32", DType::f32, Into::add, dy, x);
  }

 private:
  // Dense, and grouped by both kinds of sizes.
  void both(const char* op, const std::function<void()>& dense,
            const std::function<void(const Tensor& offsets)>& grouped) {
    dense_tflops_ = tflops(dense);
    for (const bool zipf : {false, true}) {
      const std::vector<int64_t> o = offsets_of(layer_, zipf);
      const Tensor offsets = Tensor::of({std::ssize(o)}, std::span<const int64_t>(o)).to(kGpu);
      add(op, zipf, tflops([&] { grouped(offsets); }));
    }
  }

  void weight_gradient(const char* op, DType dtype, Into into, const Rows& dy, const Rows& x) {
    const Tensor dw = Tensor::zeros({layer_.experts, layer_.n, layer_.k}, dtype, kGpu);
    const Tensor one = Tensor::zeros({layer_.n, layer_.k}, dtype, kGpu);
    both(
        op, [&] { matmul_tn_into(one, dy.data, x.data, into); },
        [&](const Tensor& offsets) { grouped_matmul_tn_into(dw, dy, x, offsets, into); });
  }

  static Tensor copied(const Tensor& t) {
    const Tensor out = Tensor::empty(t.shape(), t.dtype(), kGpu);
    copy_into(out, t);
    return out;
  }

  double tflops(const std::function<void()>& f) const {
    const auto operations = 2.0 * static_cast<double>(layer_.rows * layer_.n * layer_.k);
    return operations / milliseconds(f) / 1e9;
  }

  void add(const char* op, bool zipf, double grouped_tflops) {
    report_.add({{"layer", layer_.name},
                 {"rows", layer_.rows},
                 {"experts", layer_.experts},
                 {"k", layer_.k},
                 {"n", layer_.n},
                 {"op", op},
                 {"sizes", zipf ? "Zipf" : "even"},
                 {"TFLOP/s", grouped_tflops},
                 {"dense", dense_tflops_},
                 {"ratio", grouped_tflops / dense_tflops_}});
  }

  Report& report_;
  Layer layer_;
  double dense_tflops_ = 0;
};

void run(Report& report) {
  for (const Layer& layer : {Layer{"A, gate and up", 32768, 16, 1024, 2816},
                             {"A, down", 32768, 16, 1408, 1024},
                             {"B, gate and up", 49152, 64, 2048, 2048},
                             {"B, down", 49152, 64, 1024, 2048},
                             {"DeepSeek-V3's", 32768, 32, 7168, 4096}})
    Bench(report, layer).run();
}

}  // namespace
}  // namespace phalanx::bench

int main(int argc, char** argv) {
  return phalanx::bench::main_on_gpu("cuda_grouped", {argv, static_cast<size_t>(argc)}, phalanx::bench::run);
}
