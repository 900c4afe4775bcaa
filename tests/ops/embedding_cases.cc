#include "phalanx/ops/embedding.h"

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

std::vector<int32_t> random_tokens(Random& random, int64_t n, int64_t vocabulary) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  for (int32_t& t : tokens) t = static_cast<int32_t>(random.integer(0, vocabulary - 1));
  return tokens;
}

struct Case {
  int64_t tokens, vocabulary, width;
};

TEST_P(Embedding, EqualsTheReference) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const auto& [n, vocabulary, width] :
         {Case{0, 3, 5}, Case{1, 1, 1}, Case{50, 7, 33}, Case{300, 65, 128}, Case{20, 500, 1031}}) {
      SCOPED_TRACE(format("{} tokens of {}, {} wide, {}", n, vocabulary, width, dtype_name(dtype)));
      const std::vector<int32_t> tokens = random_tokens(random, n, vocabulary);
      const Tensor table = random.tensor({vocabulary, width}, dtype);
      const Tensor dy = random.tensor({n, width}, dtype);
      const Values rows = values(table);
      const Values g = values(dy);
      Values y;
      Values sum = rows;
      const auto w = static_cast<size_t>(width);
      for (size_t t = 0; t < tokens.size(); ++t) {
        for (size_t i = 0; i < w; ++i) {
          y.push_back(rows[static_cast<size_t>(tokens[t]) * w + i]);
          sum[static_cast<size_t>(tokens[t]) * w + i] += g[t * w + i];
        }
      }
      for_each_target_here([&](bool) {
        EXPECT_EQ(values(embedding(here(table), here(indices(tokens)))), y);
        const Tensor dtable = copy_here(table);
        embedding_backward_into(dtable, here(dy), here(indices(tokens)));
        expect_close(values(dtable), sum, within(16, dtype, 1 + largest(sum)), "dtable");
      });
    }
  }
}

// Sums run in token order, bit by bit.
TEST_P(Embedding, BackwardAddsInTokenOrder) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor dy = random.tensor({200, 3}, DType::f32);
  const Tensor there = copy_here(Tensor::zeros({1, 3}, DType::f32));
  embedding_backward_into(there, here(dy), here(indices(std::vector<int32_t>(200, 0))));
  const Tensor dtable = there.to(kCpu);
  for (int64_t i = 0; i < 3; ++i) {
    float sum = 0;
    for (int64_t t = 0; t < 200; ++t) sum += dy.data<float>()[t * 3 + i];
    EXPECT_EQ(dtable.data<float>()[i], sum);
  }
}

TEST_P(Embedding, RefusesTokensOutsideTheVocabulary) {
  const Tensor table = Tensor::zeros({4, 2}, DType::f32);
  for (const int32_t token : {-1, 4}) {
    const Tensor tokens = here(indices({0, token}));
    expect_refused([&] { (void)embedding(here(table), tokens); });
    const Tensor dy = here(Tensor::zeros({2, 2}, DType::f32));
    expect_refused([&] { embedding_backward_into(copy_here(table), dy, tokens); });
  }
}

TEST_P(Embedding, BitsDoNotDependOnThreads) {
  Random random;
  SCOPED_TRACE(random.trace());
  const Tensor tokens = indices(random_tokens(random, 500, 9));
  const Tensor table = random.tensor({9, 150}, DType::f32);
  const Tensor dy = random.tensor({500, 150}, DType::f32);
  expect_same_bits_for_any_threads([&]() -> std::vector<Tensor> {
    const Tensor dtable = copy_here(table);
    embedding_backward_into(dtable, here(dy), here(tokens));
    return {embedding(here(table), here(tokens)), dtable};
  });
}

}  // namespace
}  // namespace phalanx::test
