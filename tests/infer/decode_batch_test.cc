// Sequences decoded together, in pages, against each decoded alone, in segments.
#include "phalanx/infer/decode_batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "phalanx/base/error.h"
#include "phalanx/infer/decode.h"
#include "tests/infer/tiny_models.h"

namespace phalanx::test {
namespace {

constexpr double kTolerance = 1e-11;

void expect_equal_rows(const Tensor& got_BV, int64_t row, const Tensor& want_1V) {
  for (int64_t i = 0; i < kVocabulary; ++i) {
    ASSERT_NEAR(got_BV.data<double>()[row * kVocabulary + i], want_1V.data<double>()[i], kTolerance)
        << "row " << row;
  }
}

class DecodeBatchTest : public ::testing::TestWithParam<Case> {};

TEST_P(DecodeBatchTest, GivesEachSequenceTheLogitsThatItHasAlone) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    std::mt19937 random(seed);
    Model model(world, GetParam().config, DType::f64, seed);
    DecodeBatch batch(model.transformer, 3, kContext);
    for (int round = 0; round < 2; ++round) {
      std::vector<Tokens> texts;
      for (const size_t n : {size_t{1}, size_t{60}, 1 + random() % 100}) {
        texts.push_back(random_tokens(random, n));
      }
      Tensor logits_BV = batch.read(texts);
      for (int step = 0; step < 8; ++step) {
        ASSERT_EQ(logits_BV.rows(), 3);
        for (size_t b = 0; b < 3; ++b) {
          const Tensor want = logits_after(model.transformer, texts[b], 0, nullptr);
          expect_equal_rows(logits_BV, static_cast<int64_t>(b), want);
          EXPECT_EQ(batch.length(static_cast<int>(b)), std::ssize(texts[b]));
        }
        const Tokens next = random_tokens(random, 3);
        for (size_t b = 0; b < 3; ++b) texts[b].push_back(next[b]);
        logits_BV = batch.step(next);
      }
    }
  });
}

TEST_P(DecodeBatchTest, GoesOnWithTheLikeliestTokens) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    std::mt19937 random(seed);
    Model model(world, GetParam().config, DType::f64, seed);
    std::vector<Tokens> texts = {random_tokens(random, 3), random_tokens(random, 70)};
    DecodeBatch batch(model.transformer, 2, 100);
    batch.read(texts);
    for (int step = 0; step < 30; ++step) batch.step();
    for (Tokens& text : texts) {
      const auto any = [](int32_t) { return true; };
      const GenerateOptions greedy = {.tokens = 31, .sampler = {.temperature = 0}};
      const Tokens more = generate(model.transformer, text, greedy, any).tokens;
      text.insert(text.end(), more.begin(), more.end());
    }
    EXPECT_EQ(batch.texts(), texts);
    EXPECT_THROW(batch.step(), BrokenPromise);  // the second one has its 100 tokens
  });
}

INSTANTIATE_TEST_SUITE_P(Models, DecodeBatchTest,
                         ::testing::Values(Case{"gpt", gpt()}, Case{"llama", llama()}, Case{"mla", mla()},
                                           Case{"moe", moe()}),
                         [](const auto& info) { return info.param.name; });

// Pages are taken in any order of growth, and come back.
TEST(PagedKv, ReadsInPiecesAreThoseOfOneCache) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    std::mt19937 random(seed);
    Model model(world, llama(), DType::f64, seed);
    PagedKv cache(model.transformer.config().layers, 1, kContext, kCpu);
    for (int round = 0; round < 2; ++round) {
      const Tokens text = random_tokens(random, kContext);
      for (size_t read = 0; read < text.size();) {
        const size_t n = std::min<size_t>(1 + random() % 50, text.size() - read);
        cache.expect(std::array{static_cast<int64_t>(n)});
        const Tensor got = logits_after(model.transformer, std::span(text).subspan(read, n),
                                        static_cast<int64_t>(read), &cache);
        read += n;
        EXPECT_EQ(cache.length(0), static_cast<int64_t>(read));
        expect_equal_rows(got, 0, logits_after(model.transformer, std::span(text).first(read), 0, nullptr));
      }
      cache.clear();
    }
  });
}

}  // namespace
}  // namespace phalanx::test
