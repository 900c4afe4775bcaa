// Decoding and prefill on one GPU in bf16, random weights and texts: what bench/peers' gpu_decode_torch.py
// runs with PyTorch. Arguments: --steps N (64), --json FILE.
#include <chrono>
#include <cstdlib>

#include "bench/models.h"
#include "bench/on_gpu.h"
#include "phalanx/base/median.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/infer/decode_batch.h"

namespace phalanx::bench {
namespace {

constexpr int64_t kContext = 1024;   // about which steps are timed
constexpr int64_t kCapacity = 2048;  // for which sequences have room

std::vector<std::vector<int32_t>> random_texts(int sequences, int64_t tokens, const ModelConfig& m) {
  std::mt19937 random(1);
  std::vector<std::vector<int32_t>> texts(static_cast<size_t>(sequences));
  for (auto& text : texts) {
    for (int64_t i = 0; i < tokens; ++i) {
      text.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(m.vocabulary)));
    }
  }
  return texts;
}

double seconds(const std::function<void()>& f) {
  current_stream().synchronise();
  const auto begin = std::chrono::steady_clock::now();
  f();
  current_stream().synchronise();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Bytes a second that a copy of 1 GiB reads and writes.
double copy_speed() {
  const Tensor from = random({1 << 28}, DType::f32);
  const Tensor to = Tensor::empty(from.shape(), DType::f32, kGpu);
  return 2e3 * static_cast<double>(from.bytes()) / milliseconds([&] { copy_into(to, from); });
}

class Bench {
 public:
  Bench(Report& report, Transformer& model, size_t weight_bytes, int steps)
      : report_(report),
        model_(model),
        weight_bytes_(static_cast<double>(weight_bytes)),
        steps_(steps),
        copy_(copy_speed()) {}

  // Each sequence goes on with its likeliest token; the host waits for none of them.
  void decode(int sequences) {
    const ModelConfig& m = model_.config();
    DecodeBatch batch(model_, sequences, kCapacity);
    batch.read(random_texts(sequences, kContext - steps_ / 2 - kWarm, m));
    const auto run = [&](int steps) {
      for (int i = 0; i < steps; ++i) batch.step();
    };
    run(kWarm);
    const double step_s = seconds([&] { run(steps_); }) / steps_;
    const auto row = static_cast<double>(2 * m.layers * m.kv_heads * m.head_dim) * sizeof(bf16);
    const double kv_bytes = row * sequences * static_cast<double>(kContext);
    const double bytes = weight_bytes_ + kv_bytes;
    report_.add({{"decode, sequences", sequences},
                 {"ms a step", 1e3 * step_s},
                 {"tokens/s", sequences / step_s},
                 {"weights, GB", weight_bytes_ / 1e9},
                 {"keys and values, GB", kv_bytes / 1e9},
                 {"GB/s", bytes / step_s / 1e9},
                 {"a copy, GB/s", copy_ / 1e9},
                 {"of a copy, %", 100 * bytes / step_s / copy_}});
  }

  void prefill(int sequences, int64_t tokens) {
    DecodeBatch batch(model_, sequences, tokens);
    const auto texts = random_texts(sequences, tokens, model_.config());
    std::vector<double> times;
    for (int i = -2; i < 7; ++i) {
      const double s = seconds([&] { batch.read(texts); });
      if (i >= 0) times.push_back(s);
    }
    const double all = static_cast<double>(sequences) * static_cast<double>(tokens);
    report_.add({{"prefill, sequences", sequences},
                 {"tokens of each", tokens},
                 {"ms", 1e3 * median(times)},
                 {"tokens/s", all / median(times)}});
  }

 private:
  static constexpr int kWarm = 4;  // steps: the second one is recorded

  Report& report_;
  Transformer& model_;
  double weight_bytes_;
  int steps_;
  double copy_;
};

void run(Report& report, int steps) {
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    const DeviceScope scope(kGpu);
    Mesh mesh(world, {});
    ParameterStore store(mesh, DType::bf16, {}, {.device = kGpu});
    Transformer model(store, resolved(llama(16, 2048, 32)), 1);
    store.initialise(1);
    Bench bench(report, model, store.values().bytes(), steps);
    for (const int sequences : {1, 8, 16, 64}) bench.decode(sequences);
    bench.prefill(1, 2048);
    bench.prefill(8, 2048);
  });
}

int steps_of(std::span<char*> arguments) {
  for (size_t i = 1; i + 1 < arguments.size(); ++i) {
    if (std::string_view(arguments[i]) == "--steps") return std::max(1, std::atoi(arguments[i + 1]));
  }
  return 64;
}

}  // namespace
}  // namespace phalanx::bench

int main(int count, char** all) {
  const std::span arguments(all, static_cast<size_t>(count));
  return phalanx::bench::main_on_gpu("decoding, 1.24B parameters in bf16", arguments,
                                     [&](phalanx::bench::Report& report) {
                                       phalanx::bench::run(report, phalanx::bench::steps_of(arguments));
                                     });
}
