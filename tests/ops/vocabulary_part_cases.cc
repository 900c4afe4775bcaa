// Embedding and cross-entropy of a vocabulary in parts, against the whole: odd cuts, empty parts, targets
// that do not count.
#include <algorithm>

#include "phalanx/ops/cross_entropy.h"
#include "phalanx/ops/embedding.h"
#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

std::vector<int32_t> random_tokens(Random& random, int64_t n, int64_t vocabulary, bool ignored) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  for (int32_t& t : tokens) {
    t = static_cast<int32_t>(random.integer(0, vocabulary - 1));
    if (ignored && random.integer(0, 4) == 0) t = kIgnore;
  }
  return tokens;
}

Tensor columns(const Tensor& x, int64_t begin, int64_t end) {
  const Values all = values(x);
  Values out;
  for (int64_t r = 0; r < x.rows(); ++r) {
    const auto row = all.begin() + r * x.dim(1);
    out.insert(out.end(), row + begin, row + end);
  }
  return tensor({x.rows(), end - begin}, x.dtype(), out);
}

// Where each part begins, and the end.
std::vector<std::vector<int64_t>> cuts(int64_t v) {
  return {{0, v}, {0, v / 2, v}, {0, 0, 1, v}, {0, v / 3, v / 3 + 1, v, v}};
}

TEST_P(VocabularyParts, PartsOfAnEmbeddingSumToIt) {
  Random random;
  SCOPED_TRACE(random.trace());
  constexpr int64_t kVocabulary = 37;
  for (const DType dtype : kFloats) {
    const Tensor table = here(random.tensor({kVocabulary, 19}, dtype));
    const Tensor dy = here(random.tensor({60, 19}, dtype));
    const Tensor tokens = here(indices(random_tokens(random, 60, kVocabulary, false)));
    const Values whole = values(embedding(table, tokens));
    const Tensor whole_dtable = here(Tensor::zeros(table.shape(), dtype));
    embedding_backward_into(whole_dtable, dy, tokens);
    for (const std::vector<int64_t>& cut : cuts(kVocabulary)) {
      Values sum(whole.size(), 0);
      Values dtable;
      for (size_t p = 0; p + 1 < cut.size(); ++p) {
        const VocabularyPart part = {.first = cut[p], .all = kVocabulary};
        const Tensor own = table.slice(cut[p], cut[p + 1]);
        const Values y = values(embedding(own, tokens, part));
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += y[i];
        const Tensor d = here(Tensor::zeros(own.shape(), dtype));
        embedding_backward_into(d, dy, tokens, part);
        const Values dvalues = values(d);
        dtable.insert(dtable.end(), dvalues.begin(), dvalues.end());
      }
      EXPECT_EQ(sum, whole);
      EXPECT_EQ(dtable, values(whole_dtable));
    }
  }
}

TEST_P(VocabularyParts, PartsOfACrossEntropyMergeToIt) {
  Random random;
  SCOPED_TRACE(random.trace());
  constexpr int64_t kVocabulary = 61;
  for (const DType dtype : kFloats) {
    for (const double deviation : {1e-3, 2.0, 300.0}) {
      const Tensor logits = random.tensor({40, kVocabulary}, dtype, deviation);
      const Tensor targets = indices(random_tokens(random, 40, kVocabulary, true));
      const CrossEntropy whole = cross_entropy(logits, targets);
      const Tensor gradient = copy_here(logits);
      cross_entropy_backward_into(gradient, here(targets), here(whole.log_sum_exp_T2), 0.7);
      for (const std::vector<int64_t>& cut : cuts(kVocabulary)) {
        const auto parts = static_cast<int64_t>(cut.size()) - 1;
        const Tensor sums = Tensor::empty({parts, 40, 3}, DType::f64);
        for (int64_t p = 0; p < parts; ++p) {
          const auto at = static_cast<size_t>(p);
          const Tensor own = columns(logits, cut[at], cut[at + 1]);
          const Tensor s =
              cross_entropy_part(here(own), here(targets), {.first = cut[at], .all = kVocabulary}).to(kCpu);
          std::ranges::copy(s.span<double>(), sums.data<double>() + p * 40 * 3);
        }
        const CrossEntropy merged = merge_cross_entropy(here(sums), here(targets), dtype);
        expect_close({number_of(merged.loss_sum)}, {number_of(whole.loss_sum)}, within(16, dtype, 40),
                     "loss");
        expect_close(values(merged.log_sum_exp_T2), values(whole.log_sum_exp_T2), within(16, dtype, 1),
                     "log-sum-exp");
        for (size_t p = 0; p + 1 < cut.size(); ++p) {
          const Tensor own = copy_here(columns(logits, cut[p], cut[p + 1]));
          cross_entropy_backward_into(own, here(targets), here(whole.log_sum_exp_T2), 0.7,
                                      {.first = cut[p], .all = kVocabulary});
          EXPECT_EQ(values(own), values(columns(gradient, cut[p], cut[p + 1])));
        }
      }
    }
  }
}

TEST_P(VocabularyParts, ATokenThatNoPartHoldsIsABrokenPromise) {
  const Tensor table = here(Tensor::zeros({3, 2}, DType::f32));
  const Tensor logits = here(Tensor::zeros({1, 3}, DType::f32));
  const Tensor none = here(indices({5}));
  expect_refused([&] { (void)embedding(table, none, {.first = 0, .all = 5}); });
  expect_refused([&] { (void)cross_entropy_part(logits, none, {.first = 2, .all = 5}); });
  EXPECT_EQ(values(embedding(table, here(indices({4})), {.first = 0, .all = 5})), Values({0, 0}));
}

}  // namespace
}  // namespace phalanx::test
