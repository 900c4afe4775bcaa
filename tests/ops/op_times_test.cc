#include "phalanx/ops/op_times.h"

#include <gtest/gtest.h>

#include <map>

#include "phalanx/base/error.h"
#include "phalanx/ops/peak.h"

namespace phalanx {
namespace {

constexpr OpShapes kSmall = {.tokens = 24,
                             .context = 8,
                             .width = 12,
                             .heads = 2,
                             .mlp_width = 20,
                             .vocabulary = 30,
                             .experts = 4,
                             .top_k = 2};

TEST(OpTimes, EachOpTellsItsWork) {
  size_t told = 0;
  const std::vector<OpTime> times = measure_ops(kSmall, DType::f64, 1e-5, [&](const OpTime&) { ++told; });
  EXPECT_EQ(told, times.size());
  std::multimap<std::string, int64_t> work;
  for (const OpTime& t : times) {
    EXPECT_GT(t.seconds, 0) << t.op;
    EXPECT_GT(t.work, 0) << t.op;
    EXPECT_NE(t.kind, TraceKind::other) << t.op;
    work.emplace(t.op, t.work);
  }
  EXPECT_EQ(work.find("matmul_nt")->second, 2 * 24 * 12 * 12);
  EXPECT_EQ(work.count("matmul_nt"), 3u);
  EXPECT_EQ(work.find("attention")->second,
            3 * 36 * 2 * 2 * 12);  // 3 sequences of 36 pairs, 2 products of 12 columns
  EXPECT_EQ(work.find("attention_backward")->second, 3 * 36 * 2 * 5 * 12);
  EXPECT_EQ(work.find("add")->second, 3 * 24 * 12 * 8);
  EXPECT_EQ(work.find("swiglu")->second, 3 * 24 * 20 * 8);
  EXPECT_EQ(work.find("grouped_matmul_nt")->second, 2 * (24 * 2) * 12 * 20);
  EXPECT_EQ(work.find("permute")->second, (1 + 2) * 24 * 12 * 8);
  EXPECT_EQ(work.find("adamw_into")->second, 7 * 8 * (4 * 12 * 12 + 2 * 12 * 20));
}

TEST(OpTimes, SizesThatDoNotDivideAreRefused) {
  OpShapes shapes = kSmall;
  shapes.context = 7;
  EXPECT_THROW(measure_ops(shapes, DType::f32, 0, {}), Error);
  shapes = kSmall;
  shapes.heads = 5;
  EXPECT_THROW(measure_ops(shapes, DType::f32, 0, {}), Error);
  shapes = kSmall;
  shapes.top_k = 5;
  EXPECT_THROW(measure_ops(shapes, DType::f32, 0, {}), Error);
}

TEST(CopySpeed, EverySizeHasASpeedAndSecondsGrow) {
  const CopySpeed speed = CopySpeed::measure(1e-4);
  for (const int64_t bytes :
       {int64_t{1}, int64_t{1} << 15, int64_t{1} << 20, int64_t{1} << 27, int64_t{1} << 40}) {
    EXPECT_GT(speed.bytes_per_second(bytes), 1e6) << bytes;
    EXPECT_NEAR(speed.seconds(bytes) * speed.bytes_per_second(bytes), static_cast<double>(bytes),
                1e-6 * static_cast<double>(bytes));
  }
  EXPECT_EQ(speed.bytes_per_second(int64_t{1} << 40), speed.of_memory());
}

}  // namespace
}  // namespace phalanx
