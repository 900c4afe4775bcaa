// Rows to heads and back: which elements go where, sums over ranks that share a head, odd sizes, and bytes.
#include "phalanx/parallel/context_parallel.h"

#include <gtest/gtest.h>

#include <random>

#include "phalanx/comm/transport/threads.h"

namespace phalanx {
namespace {

struct Case {
  int cp;
  int heads;
  int64_t head_dim;
  int64_t rows;  // of a rank
};

// Of row t, head h and element i: different everywhere.
double element(int64_t t, int64_t h, int64_t i) { return static_cast<double>(t * 1000 + h * 50 + i); }

class ContextParallelTest : public ::testing::TestWithParam<Case> {};

TEST_P(ContextParallelTest, HeadsHaveAllRowsAndComeBackSummed) {
  const auto [cp, heads, head_dim, rows] = GetParam();
  const int64_t width = heads * head_dim;
  run_thread_ranks({.ranks = cp}, [&, cp = cp, heads = heads, d = head_dim, rows = rows](Group& world) {
    Mesh mesh(world, {.cp = cp});
    ContextParallel context(mesh, cp);
    const Tensor x = Tensor::empty({rows, width}, DType::f64);
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t c = 0; c < width; ++c) {
        x.data<double>()[t * width + c] = element(world.rank() * rows + t, c / d, c % d);
      }
    }
    const Tensor y = run(context.to_heads(x, heads));
    const int own = context.heads(heads);
    const int first = world.rank() * std::min(heads, cp) / cp * own;
    ASSERT_EQ(y.shape(), (Shape{cp * rows, own * d}));
    for (int64_t t = 0; t < cp * rows; ++t) {
      for (int64_t c = 0; c < own * d; ++c) {
        ASSERT_EQ(y.data<double>()[t * own * d + c], element(t, first + c / d, c % d)) << t << ", " << c;
      }
    }
    const Tensor back = run(context.to_rows(y, heads));
    const double sharers = static_cast<double>(cp) / std::min(heads, cp);
    ASSERT_EQ(back.shape(), x.shape());
    for (int64_t i = 0; i < x.numel(); ++i) {
      ASSERT_EQ(back.data<double>()[i], sharers * x.data<double>()[i]);
    }
    const int64_t sent = 2 * (cp - 1) * rows * own * d * 8;
    EXPECT_EQ(mesh.traffic().sent, sent);
    EXPECT_EQ(mesh.traffic().received, sent);
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, ContextParallelTest,
                         ::testing::Values(Case{1, 3, 2, 5}, Case{2, 2, 3, 1}, Case{2, 6, 5, 7},
                                           Case{4, 4, 1, 3}, Case{4, 8, 3, 130}, Case{4, 2, 3, 5},
                                           Case{4, 1, 7, 70}, Case{8, 2, 2, 0}),
                         [](const auto& info) {
                           return format("cp{}_{}x{}_{}rows", info.param.cp, info.param.heads,
                                         info.param.head_dim, info.param.rows);
                         });

}  // namespace
}  // namespace phalanx
