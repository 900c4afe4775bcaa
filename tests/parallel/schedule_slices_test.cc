// Schedules of microbatches that are cut along the sequence.
#include <gtest/gtest.h>

#include <algorithm>

#include "phalanx/base/text.h"
#include "phalanx/parallel/schedule/check.h"
#include "phalanx/parallel/schedule/simulate.h"

namespace phalanx {
namespace {

struct Case {
  std::string_view name;
  ScheduleShape shape;
};

std::string text(const Case& c) {
  return format("{} P={} M={} v={} n={}", c.name, c.shape.ranks, c.shape.microbatches, c.shape.chunks,
                c.shape.slices);
}

// Every kind with 1 to 5 slices, on 1 to 5 ranks, with the fewest microbatches that it takes and more.
std::vector<Case> cases() {
  std::vector<Case> out;
  for (const ScheduleEntry* entry : schedule_entries()) {
    for (int P = 1; P <= 5; ++P) {
      if (entry->name == "overlapped" && P > 1) continue;
      if (entry->name == "dualpipe" && P % 2 != 0) continue;
      const int least = entry->name.starts_with("dualpipe") ? 2 * P : 1;
      for (const int M : {least, least + 2, 2 * P + 4}) {
        for (int n = 1; n <= 5; ++n) {
          out.push_back({entry->name, {P, M, 0, n}});
          if (entry->any_chunks) out.push_back({entry->name, {P, M, 3, n}});
        }
      }
    }
  }
  return out;
}

std::string list_of(const Schedule& s, int rank) {
  std::string all;
  for (const Step& step : s.steps[static_cast<size_t>(rank)]) {
    all += (all.empty() ? "" : " ") + step_text(step, s.chunks_per_rank > 1, s.slices);
  }
  return all;
}

double worst_idle(const Schedule& s, const StepTimes& times) {
  return std::ranges::max(simulate(s, times).idle);
}

TEST(SlicedSchedule, EveryListIsSoundAndHoldsNoMoreThanTheFormula) {
  for (const Case& c : cases()) {
    const Schedule s = make_schedule(c.name, c.shape);
    EXPECT_EQ(check_schedule(s), "") << text(c);
    EXPECT_EQ(check_schedule(forward_only(s, 2 * c.shape.slices)), "") << text(c);
    EXPECT_EQ(s.microbatches, c.shape.microbatches * c.shape.slices);
    const std::vector<int> peaks = peak_live(s);
    for (int r = 0; r < s.ranks; ++r) EXPECT_LE(peaks[static_cast<size_t>(r)], peak_formula(s, r)) << text(c);
  }
}

TEST(SlicedSchedule, Lists) {
  EXPECT_EQ(list_of(make_schedule("gpipe", {1, 2, 0, 2}), 0), "F0.0 F0.1 F1.0 F1.1 B0.1 B0.0 B1.1 B1.0");
  EXPECT_EQ(list_of(make_schedule("sequential", {1, 1, 0, 3}), 0), "F0.0 F0.1 F0.2 B0.2 B0.1 B0.0");
  EXPECT_EQ(list_of(make_schedule("overlapped", {1, 2, 0, 2}), 0),
            "F0.0 F0.1 F1.0&B0.1 F1.1&B0.0 I1.1 I1.0 W1.1 W1.0");
  EXPECT_EQ(list_of(make_schedule("1f1b", {2, 2, 0, 2}), 0), "F0.0 F0.1 F1.0 B0.1 F1.1 B0.0 B1.1 B1.0");
  EXPECT_EQ(list_of(make_schedule("1f1b", {2, 2, 0, 2}), 1), "F0.0 F0.1 B0.1 F1.0 B0.0 F1.1 B1.1 B1.0");
  EXPECT_EQ(list_of(make_schedule("zb-h1", {2, 2, 0, 2}), 1),
            "F0.0 F0.1 I0.1 F1.0 I0.0 W0.1 F1.1 I1.1 W0.0 I1.0 W1.1 W1.0");
  EXPECT_EQ(list_of(make_schedule("interleaved", {1, 1, 2, 2}), 0),
            "F0.0.0 F0.0.1 F1.0.0 F1.0.1 B1.0.1 B1.0.0 B0.0.1 B0.0.0");
}

// The pipeline fills and empties in steps of an n-th.
TEST(SlicedSchedule, TheBubbleShrinksAsOneOverTheSlices) {
  for (const StepTimes& t : {StepTimes{1, 2, 1, 3}, StepTimes{2, 3, 1, 5}}) {
    for (const int P : {2, 3, 4, 8}) {
      for (const int M : {1, 3, 2 * P}) {
        for (const int n : {1, 2, 3, 8}) {
          for (const char* name : {"gpipe", "1f1b"}) {
            const Schedule s = make_schedule(name, {P, M, 0, n});
            EXPECT_NEAR(worst_idle(s, t), (P - 1) * (t.F + t.B) / n, 1e-9) << text({name, {P, M, 0, n}});
          }
        }
      }
    }
  }
}

TEST(SlicedSchedule, IdleTimeIsTheFormulas) {
  for (const char* name : {"sequential", "gpipe", "1f1b", "zb-h1", "zb-v"}) {
    for (const Case& c : cases()) {
      if (c.name != name) continue;
      const Schedule s = make_schedule(c.name, c.shape);
      EXPECT_NEAR(worst_idle(s, {}), bubble_formula(s, {}), 1e-9) << text(c);
    }
  }
  for (const Case& c : cases()) {  // pairs overlap by slices: less may be idle
    if (!c.name.starts_with("dualpipe")) continue;
    const Schedule s = make_schedule(c.name, c.shape);
    EXPECT_LE(worst_idle(s, {}), bubble_formula(s, {}) + 1e-9) << text(c);
  }
}

// 1F1B and ZB-H1 hold a slice more for each slice of a microbatch beyond the first; others whole
// microbatches.
TEST(SlicedSchedule, PeaksAreOfSlices) {
  for (const int n : {1, 2, 4, 7}) {
    for (const char* name : {"1f1b", "zb-h1"}) {
      const std::vector<int> peaks = peak_live(make_schedule(name, {4, 8, 0, n}));
      EXPECT_EQ(peaks, (std::vector<int>{n + 3, n + 2, n + 1, n})) << name << n;
    }
    EXPECT_EQ(peak_live(make_schedule("gpipe", {2, 3, 0, n})), (std::vector<int>{3 * n, 3 * n}));
    EXPECT_EQ(peak_live(make_schedule("sequential", {2, 3, 0, n})), (std::vector<int>{n, n}));
    EXPECT_EQ(peak_live(make_schedule("zb-v", {2, 4, 0, n})), (std::vector<int>{4 * n, 4 * n}));
  }
}

TEST(SlicedSchedule, ASliceOutOfItsOrderIsTold) {
  const Schedule good = make_schedule("gpipe", {2, 1, 0, 3});  // F0.0 F0.1 F0.2 B0.2 B0.1 B0.0
  const auto told = [&](size_t i, size_t j) {
    Schedule s = good;
    for (Steps& list : s.steps) std::swap(list[i], list[j]);
    return check_schedule(s);
  };
  EXPECT_NE(told(0, 1).find("rank 0: F0.1 (step 0) comes before the forward of 0.0"), std::string::npos)
      << told(0, 1);
  EXPECT_NE(told(4, 5).find("rank 1: B0.0 (step 4) comes before the backward of 0.1"), std::string::npos)
      << told(4, 5);
  Schedule odd = good;
  odd.slices = 2;
  EXPECT_EQ(check_schedule(odd), "3 slices do not make whole microbatches of 2");
}

}  // namespace
}  // namespace phalanx
