#include "phalanx/ops/route_choice.h"

#include <algorithm>
#include <limits>

#include "tests/ops/on_device.h"

namespace phalanx::test {
namespace {

Routing with_scores(const Shape& shape, int k, const Values& scores) {
  return {here(Tensor::zeros({shape[0], k}, DType::i64)), here(Tensor::zeros({shape[0], k}, DType::f64)),
          here(tensor(shape, DType::f64, scores))};
}

TEST_P(ChoiceMargins, AreTheGapBehindTheLastChosen) {
  const Routing r = with_scores({2, 4}, 2, {0.5, 0.1, 0.3, 0.25, 0.7, 0.2, 0.1, 0.2});
  const std::vector<double> margins = choice_margins(r, {.top_k = 2}, {});
  EXPECT_NEAR(margins[0], 0.05, 1e-15);
  EXPECT_EQ(margins[1], 0);  // a tie
  const Tensor bias = here(tensor({4}, DType::f64, {0, 0.3, 0, 0}));
  EXPECT_NEAR(choice_margins(r, {.top_k = 2}, bias)[0], 0.1, 1e-15);  // 0.5, 0.4 before 0.3
  EXPECT_EQ(choice_margins(r, {.top_k = 4}, {})[0], std::numeric_limits<double>::infinity());
}

TEST_P(ChoiceMargins, AreOfGroupsToo) {
  // Sums of two: 0.6, 0.55 and 0.3; of the first two groups the best are 0.5, 0.4 and 0.15.
  const Routing r = with_scores({1, 6}, 2, {0.5, 0.1, 0.4, 0.15, 0.15, 0.15});
  EXPECT_NEAR(choice_margins(r, {.top_k = 2, .groups = 3, .top_groups = 1}, {})[0], 0.05, 1e-15);
  EXPECT_NEAR(choice_margins(r, {.top_k = 2, .groups = 3, .top_groups = 2}, {})[0], 0.25, 1e-15);
}

// What a forced choice gives is what route gives where the scores leave no other.
TEST_P(ChooseInstead, WeighsAsRouteDoes) {
  Random random;
  SCOPED_TRACE(random.trace());
  for (const DType dtype : kFloats) {
    for (const Scores kind : {Scores::softmax, Scores::sigmoid}) {
      for (const bool normalise : {false, true}) {
        const RoutingConfig c = {.scores = kind, .top_k = 3, .normalise = normalise, .scaling = 1.5};
        const Tensor logits = here(random.tensor({5, 7}, dtype));
        const Routing want = route(logits, c);
        const Routing got = route(logits, c, here(tensor({7}, dtype, {9, 0, 9, 0, 9, 0, 0})));
        for (int64_t t = 0; t < 5; ++t) {
          choose_instead(got, t, list(want.topk_idx_TK.slice(t, t + 1)), c);
        }
        EXPECT_EQ(list(got.topk_idx_TK), list(want.topk_idx_TK));
        expect_close(values(got.weights_TK), values(want.weights_TK), within(16, dtype), "weights");
      }
    }
  }
}

}  // namespace
}  // namespace phalanx::test
