// Decoding on a GPU against the CPU's, with the same weights.
#include <cmath>
#include <functional>

#include "phalanx/infer/decode.h"
#include "phalanx/infer/decode_batch.h"
#include "tests/cuda_test.h"
#include "tests/infer/tiny_models.h"

namespace phalanx::test {
namespace {

ModelConfig grouped() {
  ModelConfig c = llama();
  c.heads = 6;
  c.kv_heads = 2;
  return c;
}

// Sizes that bf16's kernels take.
ModelConfig wide(ModelConfig c, int64_t head_dim) {
  c.width = 128;
  c.heads = 8;
  c.kv_heads = 2;
  c.head_dim = head_dim;
  c.mlp_width = 96;
  c.init_std = 0.1;
  return c;
}

// A model on the CPU, and the same on the GPU.
struct Twins {
  Transformer& cpu;
  Transformer& gpu;
  std::mt19937& random;
};

class DecodeOnGpu : public CudaTest, public testing::WithParamInterface<Case> {
 protected:
  static void with_twins(const ModelConfig& config, DType cpu, DType gpu,
                         const std::function<void(const Twins&)>& body) {
    const unsigned seed = std::random_device{}();
    SCOPED_TRACE(seed);
    run_thread_ranks({.ranks = 1}, [&](Group& world) {
      const DeviceScope scope(kGpu);
      std::mt19937 random(seed);
      Model here(world, config, cpu, seed);
      Model there(world, config, gpu, seed, kGpu);
      body({here.transformer, there.transformer, random});
    });
  }
};

std::vector<double> row_of(const Tensor& logits_BV, int64_t row) {
  const Tensor host = logits_BV.slice(row, row + 1).to(kCpu);
  return visit_float(host.dtype(), [&](auto zero) {
    const auto span = host.span<const decltype(zero)>();
    return std::vector<double>(span.begin(), span.end());
  });
}

// ‖a − b‖ / ‖b‖.
double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

// Texts read at once, then given tokens one by one: the logits of each step are those of the CPU.
void expect_equal_steps(const Twins& t, const std::vector<Tokens>& texts, double tolerance) {
  constexpr int kSteps = 70;  // more than a page
  const size_t sequences = texts.size();
  DecodeBatch batch(t.gpu, static_cast<int>(sequences), kContext);
  std::vector<KvCache> caches(sequences, KvCache(t.cpu.config().layers));
  std::vector<Tensor> want;
  for (size_t b = 0; b < sequences; ++b) want.push_back(logits_after(t.cpu, texts[b], 0, &caches[b]));
  Tensor got = batch.read(texts);
  for (int step = 0;; ++step) {
    for (size_t b = 0; b < sequences; ++b) {
      ASSERT_LT(distance(row_of(got, static_cast<int64_t>(b)), row_of(want[b], 0)), tolerance)
          << "step " << step << ", sequence " << b << " of " << sequences << ", prompt of " << texts[b].size()
          << " tokens";
    }
    if (step == kSteps) return;
    const Tokens next = random_tokens(t.random, sequences);
    for (size_t b = 0; b < sequences; ++b) {
      want[b] = logits_after(t.cpu, std::span(next).subspan(b, 1), caches[b].length(), &caches[b]);
    }
    got = batch.step(next);
  }
}

TEST_P(DecodeOnGpu, LogitsOfEachStepAreThoseOfTheCpu) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    // In f32 rounding may send a token to another expert.
    if (dtype == DType::f32 && GetParam().config.mlp == MlpKind::moe) continue;
    SCOPED_TRACE(dtype_name(dtype));
    with_twins(GetParam().config, dtype, dtype, [&](const Twins& t) {
      for (const size_t prompt : {1, 7, 63, 64, 65}) {
        expect_equal_steps(t, {random_tokens(t.random, prompt)}, dtype == DType::f64 ? 1e-10 : 1e-4);
      }
    });
  }
}

TEST_P(DecodeOnGpu, LogitsOfABatchAreThoseOfItsSequences) {
  with_twins(GetParam().config, DType::f64, DType::f64, [&](const Twins& t) {
    for (const auto& lengths : {std::vector<size_t>{1, 1}, {5, 61, 1, 70}}) {
      std::vector<Tokens> texts;
      for (const size_t n : lengths) texts.push_back(random_tokens(t.random, n));
      expect_equal_steps(t, texts, 1e-10);
    }
  });
}

// Also past the context, where the last half is read again.
TEST_P(DecodeOnGpu, TextsAreThoseOfTheCpu) {
  with_twins(GetParam().config, DType::f64, DType::f64, [&](const Twins& t) {
    const auto any = [](int32_t) { return true; };
    for (const size_t prompt : {size_t{1}, size_t{66}, size_t{kContext}, size_t{3 * kContext}}) {
      const Tokens text = random_tokens(t.random, prompt);
      for (const double temperature : {0.0, 1.0}) {
        const GenerateOptions options = {.tokens = kContext + 9, .sampler = {.temperature = temperature}};
        EXPECT_EQ(generate(t.gpu, text, options, any).tokens, generate(t.cpu, text, options, any).tokens)
            << prompt << " tokens, temperature " << temperature;
      }
    }
  });
}

TEST_P(DecodeOnGpu, GreedyBatchesAreThoseOfTheCpu) {
  with_twins(GetParam().config, DType::f64, DType::f64, [&](const Twins& t) {
    const std::vector<Tokens> texts = {random_tokens(t.random, 9), random_tokens(t.random, 40),
                                       random_tokens(t.random, 1)};
    DecodeBatch here(t.cpu, 3, 120);
    DecodeBatch there(t.gpu, 3, 120);
    here.read(texts);
    there.read(texts);
    for (int step = 0; step < 80; ++step) {
      here.step();
      there.step();
    }
    EXPECT_EQ(there.texts(), here.texts());
  });
}

INSTANTIATE_TEST_SUITE_P(Models, DecodeOnGpu,
                         testing::Values(Case{"gpt", gpt()}, Case{"llama", llama()},
                                         Case{"grouped", grouped()}, Case{"mla", mla()}, Case{"moe", moe()}),
                         [](const auto& info) { return info.param.name; });

class DecodeInBf16 : public DecodeOnGpu {};

// Against f32 on the CPU, whose weights are not rounded.
TEST_P(DecodeInBf16, LogitsOfEachStepAreNearThoseOfTheCpu) {
  with_twins(GetParam().config, DType::f32, DType::bf16, [&](const Twins& t) {
    for (const size_t prompt : {1, 7, 64, 70}) {
      expect_equal_steps(t, {random_tokens(t.random, prompt)}, 0.05);
    }
    for (const size_t sequences : {3, 16, 20}) {
      std::vector<Tokens> texts;
      for (size_t b = 0; b < sequences; ++b) texts.push_back(random_tokens(t.random, 1 + t.random() % 70));
      expect_equal_steps(t, texts, 0.05);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Models, DecodeInBf16,
                         testing::Values(Case{"gpt", wide(gpt(), 16)}, Case{"llama64", wide(llama(), 64)},
                                         Case{"llama128", wide(llama(), 128)}),
                         [](const auto& info) { return info.param.name; });

TEST_P(DecodeOnGpu, AStepInSteadyStateTakesNoMemory) {
  with_twins(GetParam().config, DType::f32, DType::f32, [&](const Twins& t) {
    DecodeBatch batch(t.gpu, 2, kContext);
    batch.read(std::vector<Tokens>{random_tokens(t.random, 3), random_tokens(t.random, 5)});
    for (int step = 0; step < 4; ++step) batch.step();
    const MemoryStats warm = current_stream().memory();
    for (int step = 0; step < 70; ++step) batch.step();
    EXPECT_EQ(current_stream().memory().system_allocations, warm.system_allocations);
    EXPECT_EQ(current_stream().memory().in_use, warm.in_use);
  });
}

}  // namespace
}  // namespace phalanx::test
