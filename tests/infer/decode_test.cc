// Decoding with a cache against the training forward, which has none and sees the whole text at once.
#include "phalanx/infer/decode.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "phalanx/base/error.h"
#include "tests/infer/tiny_models.h"

namespace phalanx::test {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

// The loop that generate() stands for, every token from the whole window.
Tokens generate_slowly(Transformer& model, Tokens text, int64_t n, const SamplerConfig& sampler) {
  const auto context = static_cast<size_t>(model.config().context);
  size_t window = std::min(text.size(), context);
  Tokens out;
  while (static_cast<int64_t>(out.size()) < n) {
    const Tensor logits = logits_after(model, std::span(text).last(window), 0, nullptr);
    out.push_back(sample(logits, sampler, text.size()));
    text.push_back(out.back());
    window = window == context ? std::max<size_t>(context / 2, 1) : window + 1;
  }
  return out;
}

Tokens generated(Transformer& model, const Tokens& prompt, const GenerateOptions& options) {
  Tokens seen;
  const GenerateResult result = generate(model, prompt, options, [&](int32_t token) {
    seen.push_back(token);
    return true;
  });
  EXPECT_EQ(result.tokens, seen);
  EXPECT_GT(result.seconds_to_first, 0);
  EXPECT_GE(result.seconds, result.seconds_to_first);
  return result.tokens;
}

class Decode : public ::testing::TestWithParam<Case> {
 protected:
  void with_model(DType dtype, const std::function<void(Transformer&, std::mt19937&)>& body) {
    const unsigned seed = std::random_device{}();
    SCOPED_TRACE(seed);
    run_thread_ranks({.ranks = 1}, [&](Group& world) {
      std::mt19937 random(seed);
      Model model(world, GetParam().config, dtype, seed);
      body(model.transformer, random);
    });
  }
};

TEST_P(Decode, LogitsFromTheCacheAreThoseOfTheWholeText) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    // In f32 rounding may send a token to another expert.
    if (dtype == DType::f32 && GetParam().config.mlp == MlpKind::moe) continue;
    const double tolerance = dtype == DType::f64 ? 1e-11 : 1e-3;
    with_model(dtype, [&](Transformer& model, std::mt19937& random) {
      const Tokens text = random_tokens(random, kContext);
      KvCache cache(model.config().layers);
      for (size_t read = 0; read < text.size();) {
        const size_t n = std::min<size_t>(1 + (random() % 3 == 0 ? random() % 80 : 0), text.size() - read);
        const Tensor cached =
            logits_after(model, std::span(text).subspan(read, n), static_cast<int64_t>(read), &cache);
        read += n;
        const Tensor whole = logits_after(model, std::span(text).first(read), 0, nullptr);
        ASSERT_EQ(cache.length(), static_cast<int64_t>(read));
        visit_float(dtype, [&](auto t) {
          for (int64_t i = 0; i < kVocabulary; ++i) {
            ASSERT_NEAR(cached.data<decltype(t)>()[i], whole.data<decltype(t)>()[i], tolerance)
                << "after " << read << " tokens";
          }
        });
      }
    });
  }
}

TEST_P(Decode, GreedyTokensAreThoseOfTheSlowLoop) {
  with_model(DType::f64, [&](Transformer& model, std::mt19937& random) {
    for (const size_t prompt_tokens : {size_t{1}, size_t{7}, size_t{KvCache::kPageRows}}) {
      const Tokens prompt = random_tokens(random, prompt_tokens);
      const GenerateOptions options = {.tokens = 80, .sampler = {.temperature = 0}};
      EXPECT_EQ(generated(model, prompt, options), generate_slowly(model, prompt, 80, options.sampler));
    }
  });
}

// A full context goes on from its last half; of a prompt that is longer, the last `context` tokens are read.
TEST_P(Decode, PastTheContextTheLastHalfIsReadAgain) {
  with_model(DType::f64, [&](Transformer& model, std::mt19937& random) {
    for (const int64_t prompt_tokens : {kContext - 3, kContext, kContext + 1, 3 * kContext}) {
      const Tokens prompt = random_tokens(random, static_cast<size_t>(prompt_tokens));
      const GenerateOptions options = {.tokens = kContext + 5, .sampler = {.top_k = 9, .seed = random()}};
      EXPECT_EQ(generated(model, prompt, options),
                generate_slowly(model, prompt, options.tokens, options.sampler))
          << prompt_tokens;
    }
  });
}

TEST_P(Decode, ASeedIsAText) {
  with_model(DType::f32, [&](Transformer& model, std::mt19937& random) {
    const Tokens prompt = random_tokens(random, 5);
    const auto text = [&](uint64_t seed) {
      return generated(model, prompt, {.tokens = 40, .sampler = {.seed = seed}});
    };
    EXPECT_EQ(text(1), text(1));
    EXPECT_NE(text(1), text(2));
  });
}

TEST_P(Decode, StopsWhenAskedTo) {
  with_model(DType::f32, [&](Transformer& model, std::mt19937& random) {
    int left = 4;
    const GenerateResult result =
        generate(model, random_tokens(random, 3), {.tokens = 1000}, [&](int32_t) { return --left > 0; });
    EXPECT_EQ(result.tokens.size(), 4u);
  });
}

TEST_P(Decode, RefusesWhatItCannotDo) {
  with_model(DType::f32, [&](Transformer& model, std::mt19937&) {
    const auto refuses = [&](const Tokens& prompt, const GenerateOptions& options, const char* says) {
      const auto on_token = [](int32_t) -> bool { throw std::logic_error("a token came"); };
      EXPECT_THAT([&] { generate(model, prompt, options, on_token); }, ThrowsMessage<Error>(HasSubstr(says)));
    };
    refuses({}, {}, "empty prompt");
    refuses({1}, {.tokens = 0}, "tokens 0");
    refuses({1}, {.tokens = -2}, "tokens -2");
    refuses({1}, {.sampler = {.top_p = 2}}, "top-p 2");
  });
}

INSTANTIATE_TEST_SUITE_P(Models, Decode,
                         ::testing::Values(Case{"gpt", gpt()}, Case{"llama", llama()}, Case{"mla", mla()},
                                           Case{"moe", moe()}),
                         [](const auto& info) { return info.param.name; });

TEST(DecodeLimits, AContextOfOneToken) {
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    ModelConfig config = gpt();
    config.context = 1;
    Model model(world, config, DType::f64, 3);
    const SamplerConfig sampler = {.seed = 5};
    EXPECT_EQ(generated(model.transformer, {1, 2}, {.tokens = 9, .sampler = sampler}),
              generate_slowly(model.transformer, {1, 2}, 9, sampler));
  });
}

TEST(DecodeLimits, BrokenWeightsAreAnError) {
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    Model model(world, llama(), DType::f32, 3);
    for (const Parameter& p : model.store.all()) {
      if (p.name() == "head.w") p.value().span<float>()[2 * 12] = std::nanf("");
    }
    const auto on_token = [](int32_t) { return true; };
    EXPECT_THAT([&] { generate(model.transformer, Tokens{1}, {}, on_token); },
                ThrowsMessage<Error>(HasSubstr("token 2 is NaN")));
  });
}

}  // namespace
}  // namespace phalanx::test
