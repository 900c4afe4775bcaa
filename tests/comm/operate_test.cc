// Operations of a caller's own making, and members of a group that are excused from them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/comm/worlds.h"

namespace phalanx {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Waits until another rank has raised a number.
class Raised final : public CommWaitable {
 public:
  explicit Raised(std::atomic<int>& number) : number_(number) {}
  bool poll() override { return number_.load() > 0; }
  PooledVector<int> missing() const override { return {}; }

 private:
  std::atomic<int>& number_;
};

Task<> wait_for(Call call, std::atomic<int>* number) {
  Raised raised(*number);
  co_await Suspend(raised);
  call.count(3, 5);
}

Work operate(Group& world, std::atomic<int>& number) {
  const auto task = [&](Call call) { return wait_for(call, &number); };
  const Fingerprint f = {.kind = Fingerprint::Kind::low_latency_combine, .dtype = DType::bf16, .numel = 7};
  return world.operate(f, task, Tensor::zeros({2}, DType::f32), 8);
}

// Ranks 0 and 2 are in an operation that rank 1 never calls.
Reports without_rank_1(bool excused) {
  std::atomic<int> number = 0;
  return reports_of({.ranks = 3, .deadlines = kSoon}, [&](Group& world) {
    world.barrier().wait();
    if (world.rank() == 1) return;
    if (excused) world.excuse(1, true);
    Work work = operate(world, number);
    if (world.rank() == 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      if (excused) number = 1;
    }
    EXPECT_EQ(work.wait().shape(), Shape({2}));
    EXPECT_EQ(world.traffic(Fingerprint::Kind::low_latency_combine).sent, 3);
    EXPECT_EQ(world.traffic(Fingerprint::Kind::low_latency_combine).received, 5);
    world.excuse(1, false);
    world.barrier().wait();
  });
}

TEST(Operate, AMemberThatEndsWithoutCallingIsNamed) {
  EXPECT_THAT(without_rank_1(false).of_rank[0],
              HasSubstr("rank 1 has ended without calling low_latency_combine(bf16, rows of 7) #1 of group"));
}

TEST(Operate, AnExcusedMemberMayEndUntilItIsExcusedNoMore) {
  const Reports r = without_rank_1(true);
  EXPECT_THAT(r.of_rank[0], AllOf(HasSubstr("rank 1 has ended without calling barrier #2"),
                                  testing::Not(HasSubstr("without calling low_latency"))));
}

}  // namespace
}  // namespace phalanx
