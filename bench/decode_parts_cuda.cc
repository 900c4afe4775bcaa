// The kernels of a decoding step of Llama 1.24B (models.h), each alone and behind itself in a recorded step,
// with other weights and pages each time, so that they come from memory. Arguments: --json FILE.
#include <numeric>

#include "bench/on_gpu.h"
#include "phalanx/infer/recorded_step.h"
#include "phalanx/ops/at_rest.h"
#include "phalanx/ops/decode_attention.h"
#include "phalanx/ops/linears.h"
#include "phalanx/ops/rmsnorm.h"
#include "phalanx/ops/swiglu_linear.h"

namespace phalanx::bench {
namespace {

constexpr int64_t kWidth = 2048;
constexpr int64_t kHidden = 8192;
constexpr int64_t kVocabulary = 128256;
constexpr int64_t kHeads = 32;
constexpr int64_t kKvHeads = 8;
constexpr int64_t kHeadDim = 64;
constexpr int64_t kContext = 1024;
constexpr int64_t kCapacity = 2048;
constexpr int64_t kPage = 64;

// Different inputs of so many bytes each, until together they are far more than the L2 cache holds.
int different(int64_t bytes) { return static_cast<int>(std::max<int64_t>(3, (int64_t{400} << 20) / bytes)); }

class Bench {
 public:
  Bench(Report& report, int64_t rows) : report_(report), rows_(rows) {}

  void linear(const char* name, int64_t features, int64_t columns, DType result = DType::bf16) {
    const int64_t bytes = 2 * features * columns;
    const std::vector<Tensor> weights = some({features, columns}, different(bytes));
    const Tensor x = random({rows_, columns}, DType::bf16);
    const Tensor y = Tensor::empty({rows_, features}, result, kGpu);
    report(name, bytes, std::ssize(weights), [&] {
      for (const Tensor& w : weights) {
        const LinearOf l = {y, w, {}, {}};
        linears_into(x, {&l, 1});
      }
    });
  }

  void qkv() {
    const int64_t k_width = kKvHeads * kHeadDim;
    const int64_t bytes = 2 * (kWidth + 2 * k_width) * kWidth;
    const std::vector<Tensor> weights = some({kWidth + 2 * k_width, kWidth}, different(bytes));
    const Tensor x = random({rows_, kWidth}, DType::bf16);
    const AttentionRows y = rows();
    report("q, k and v", bytes, std::ssize(weights), [&] {
      for (const Tensor& w : weights) {
        const std::vector<LinearOf> all = {
            {y.q_THd, w.slice(0, kWidth), {}, {}},
            {y.k_TGd, w.slice(kWidth, kWidth + k_width), {}, {}},
            {y.v_TGd, w.slice(kWidth + k_width, kWidth + 2 * k_width), {}, {}}};
        linears_into(x, all);
      }
    });
  }

  void gate_and_up() {
    const int64_t bytes = 2 * 2 * kHidden * kWidth;
    const std::vector<Tensor> weights = some({2 * kHidden, kWidth}, different(bytes));
    const Tensor x = random({rows_, kWidth}, DType::bf16);
    report("gate and up, SwiGLU", bytes, std::ssize(weights), [&] {
      for (const Tensor& w : weights) (void)linear_swiglu(x, w, {});
    });
  }

  // Of all sequences at the position before the last of the context.
  void attention() {
    const int64_t width = kKvHeads * kHeadDim;
    const int64_t bytes = 2 * 2 * rows_ * kContext * width;
    const int64_t pages = kCapacity / kPage;
    const int count = std::min(different(bytes), 32);
    const std::vector<Tensor> keys = some({rows_ * kCapacity, width}, count);
    const std::vector<Tensor> values = some({rows_ * kCapacity, width}, count);
    std::vector<int32_t> table(static_cast<size_t>(rows_ * pages));
    std::iota(table.begin(), table.end(), 0);
    std::vector<int32_t> sequences(static_cast<size_t>(rows_));
    std::iota(sequences.begin(), sequences.end(), 0);
    const std::vector<int32_t> positions(static_cast<size_t>(rows_), kContext - 1);
    const auto there = [](const std::vector<int32_t>& all) {
      return Tensor::of(Shape{std::ssize(all)}, std::span<const int32_t>(all)).to(kGpu);
    };
    const KvPlaces places = {there(sequences), there(positions)};
    const Tensor table_BP = there(table).view({rows_, pages});
    const Rotation by = rotation(500000, kHeadDim);
    AttentionRows fresh = rows();
    fresh.rotation = &by;
    const AttentionConfig config = {kHeads, kKvHeads, kHeadDim, 0.125};
    report("attention", bytes, count, [&] {
      for (size_t i = 0; i < keys.size(); ++i) {
        (void)append_and_attend({keys[i], values[i], table_BP, kPage}, places, fresh, config);
      }
    });
  }

  void norm() {
    constexpr int kTimes = 64;
    const Tensor x = random({rows_, kWidth}, DType::bf16);
    const Tensor w = random({kWidth}, DType::bf16);
    report("rmsnorm", 2 * 2 * rows_ * kWidth, kTimes, [&] {
      Tensor y = x;
      for (int i = 0; i < kTimes; ++i) y = rmsnorm(y, w, 1e-5).y_TD;
    });
  }

 private:
  static std::vector<Tensor> some(const Shape& shape, int64_t count) {
    std::vector<Tensor> all = {random(shape, DType::bf16)};
    while (std::ssize(all) < count) {
      const Tensor t = Tensor::empty(shape, DType::bf16, kGpu);
      copy_into(t, all[0]);
      all.push_back(t);
    }
    return all;
  }

  AttentionRows rows() const {
    const Tensor k = random({rows_, kKvHeads * kHeadDim}, DType::bf16);
    return {random({rows_, kHeads * kHeadDim}, DType::bf16), k, k};
  }

  void report(const char* name, int64_t bytes, int64_t times, FunctionRef<void()> queue) {
    std::shared_ptr<void> recorded;
    const auto step = [&] {
      cuda::run_recorded(recorded, [&] {
        const AtRest at_rest;
        queue();
      });
    };
    const double us = 1e3 * milliseconds(step) / static_cast<double>(times);
    report_.add({{"kernel", name},
                 {"rows", rows_},
                 {"MB", static_cast<double>(bytes) / 1e6},
                 {"us", us},
                 {"GB/s", static_cast<double>(bytes) / us / 1e3}});
  }

  Report& report_;
  int64_t rows_;
};

void run(Report& report) {
  for (const int64_t rows : {1, 8, 16, 64}) {
    Bench bench(report, rows);
    bench.qkv();
    bench.linear("o", kWidth, kWidth);
    bench.gate_and_up();
    bench.linear("down", kWidth, kHidden);
    bench.linear("head", kVocabulary, kWidth, DType::f32);
    bench.attention();
    bench.norm();
  }
}

}  // namespace
}  // namespace phalanx::bench

int main(int count, char** all) {
  return phalanx::bench::main_on_gpu("kernels of decoding, bf16", {all, static_cast<size_t>(count)},
                                     phalanx::bench::run);
}
