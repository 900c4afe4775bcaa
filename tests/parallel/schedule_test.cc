// Every pipeline schedule: complete, free of deadlock, and with the bubble and the peak that its paper says.
#include "phalanx/parallel/schedule/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "phalanx/base/error.h"
#include "phalanx/parallel/schedule/check.h"
#include "phalanx/parallel/schedule/simulate.h"

namespace phalanx {
namespace {

struct Case {
  std::string_view name;
  ScheduleShape shape;
};

std::string text(const Case& c) {
  return format("{} P={} M={} v={}", c.name, c.shape.ranks, c.shape.microbatches, c.shape.chunks);
}

bool has_least(std::string_view name) { return name.starts_with("dualpipe"); }

// Few and many microbatches, even and odd, on 1 to 16 ranks; of each kind those that it takes.
std::vector<Case> cases() {
  std::vector<Case> out;
  for (const ScheduleEntry* entry : schedule_entries()) {
    for (const int P : {1, 2, 3, 4, 8, 16}) {
      const std::set<int> microbatches = {1,     2,         P - 1, P,         P + 1,     P + 2, 2 * P - 2,
                                          2 * P, 2 * P - 1, 7,     2 * P + 2, 3 * P + 1, 4 * P, 8 * P};
      for (const int M : microbatches) {
        if (M < 1 || (has_least(entry->name) && M < 2 * P)) continue;
        if (entry->name == "dualpipe" && (P % 2 != 0 || M % 2 != 0)) continue;
        if (entry->name == "overlapped" && P > 1) continue;
        out.push_back({entry->name, {P, M}});
        if (!entry->any_chunks) continue;
        for (const int v : {1, 3, 4}) out.push_back({entry->name, {P, M, v}});
      }
    }
  }
  return out;
}

TEST(Schedule, EveryListIsCompleteAndCannotStop) {
  for (const Case& c : cases()) {
    const Schedule s = make_schedule(c.name, c.shape);
    EXPECT_EQ(incompleteness(s), "") << text(c);
    EXPECT_EQ(deadlock(s), "") << text(c);
    EXPECT_EQ(check_schedule(s), "") << text(c);
    if (s.map == StageMap::straight) {  // these need nothing posted ahead
      EXPECT_EQ(deadlock(s, Rendezvous::batched), "") << text(c);
    }
  }
}

TEST(Schedule, ForwardsAlonePassEveryStageInOrderAndCannotStop) {
  for (const Case& c : cases()) {
    const Schedule s = make_schedule(c.name, c.shape);
    for (const int M : {0, 1, 2, c.shape.ranks, 3 * c.shape.ranks + 1}) {
      const Schedule forward = forward_only(s, M);
      EXPECT_EQ(check_schedule(forward), "") << text(c) << " " << M;
      size_t steps = 0;
      for (const Steps& list : forward.steps) steps += list.size();
      EXPECT_EQ(steps, static_cast<size_t>(s.stages() * M));
    }
  }
}

TEST(Schedule, EachStageLiesOnOneRankOrOnTwoInBothDirections) {
  for (const Case& c : cases()) {
    const Schedule s = make_schedule(c.name, c.shape);
    std::multiset<int> stages;
    for (int r = 0; r < s.ranks; ++r) {
      for (int chunk = 0; chunk < s.chunks_per_rank; ++chunk) {
        const ChunkPlace here = {r, chunk};
        stages.insert(s.stage(r, chunk));
        const auto next = s.next(here);
        EXPECT_EQ(next.has_value(), s.stage(r, chunk) + 1 < s.stages());
        if (!next) continue;
        EXPECT_EQ(s.stage(next->rank, next->chunk), s.stage(r, chunk) + 1);
        EXPECT_EQ(s.previous(*next), here);
      }
    }
    const size_t copies = s.map == StageMap::both_ways ? 2 : 1;
    for (int stage = 0; stage < s.stages(); ++stage) EXPECT_EQ(stages.count(stage), copies) << text(c);
  }
}

TEST(Schedule, PeakIsTheFormula) {
  for (const Case& c : cases()) {
    const Schedule s = make_schedule(c.name, c.shape);
    const int P = s.ranks;
    const int M = s.microbatches;
    // Of an interleaved group that is not full the first ranks may hold less: see interleaved.cc.
    const bool at_most = c.name == "interleaved" && P < M && M < 2 * P - 1;
    const std::vector<int> peaks = peak_live(s);
    for (int r = 0; r < P; ++r) {
      const int peak = peaks[static_cast<size_t>(r)];
      EXPECT_LE(peak, peak_formula(s, r)) << text(c) << " rank " << r;
      if (!at_most || r == P - 1) {
        EXPECT_EQ(peak, peak_formula(s, r)) << text(c) << " rank " << r;
      }
    }
  }
}

TEST(Schedule, PeakFormulas) {
  const auto peaks = [](std::string_view name, ScheduleShape shape) {
    const Schedule s = make_schedule(name, shape);
    std::vector<int> out;
    for (int r = 0; r < s.ranks; ++r) out.push_back(peak_formula(s, r));
    return out;
  };
  using Peaks = std::vector<int>;
  EXPECT_EQ(peaks("sequential", {4, 6}), (Peaks{1, 1, 1, 1}));
  EXPECT_EQ(peaks("overlapped", {1, 6}), (Peaks{2}));
  EXPECT_EQ(peaks("overlapped", {1, 1}), (Peaks{1}));
  EXPECT_EQ(peaks("gpipe", {4, 6}), (Peaks{6, 6, 6, 6}));
  EXPECT_EQ(peaks("1f1b", {4, 8}), (Peaks{4, 3, 2, 1}));
  EXPECT_EQ(peaks("1f1b", {4, 2}), (Peaks{2, 2, 2, 1}));
  EXPECT_EQ(peaks("interleaved", {4, 8, 2}), (Peaks{11, 9, 7, 5}));
  EXPECT_EQ(peaks("interleaved", {4, 8, 3}), (Peaks{15, 13, 11, 9}));
  EXPECT_EQ(peaks("interleaved", {4, 4, 2}), (Peaks{8, 8, 7, 5}));
  EXPECT_EQ(peaks("zb-h1", {4, 8}), (Peaks{4, 3, 2, 1}));
  EXPECT_EQ(peaks("zb-v", {4, 8}), (Peaks{8, 8, 8, 8}));
  EXPECT_EQ(peaks("dualpipe", {4, 8}), (Peaks{5, 5, 5, 5}));
  EXPECT_EQ(peaks("dualpipe-v", {4, 8}), (Peaks{9, 9, 9, 9}));
}

TEST(Schedule, WhatWeightGradientsNeedIsKeptOfNoMoreThanTheRanks) {
  for (const Case& c : cases()) {
    const Schedule s = make_schedule(c.name, c.shape);
    if (c.name != "zb-h1" && c.name != "zb-v") continue;
    const int most = s.chunks_per_rank * std::min(s.ranks, s.microbatches);
    EXPECT_EQ(std::ranges::max(peak_kept(s)), most) << text(c);
  }
}

TEST(Schedule, EveryRankIsIdleForTheFormula) {
  for (const Case& c : cases()) {
    const Schedule s = make_schedule(c.name, c.shape);
    const double formula = bubble_formula(s, {});
    const bool partial_group =
        c.name == "interleaved" && s.microbatches > s.ranks && s.microbatches % s.ranks != 0;
    const Timeline t = simulate(s);
    for (const double idle : t.idle) {
      if (!partial_group || s.chunks_per_rank == 1) {
        EXPECT_EQ(idle, formula) << text(c);
        continue;
      }
      const int empty = s.ranks - s.microbatches % s.ranks;
      EXPECT_GE(idle, formula) << text(c);
      EXPECT_LE(idle, formula + 3 * empty * s.chunks_per_rank) << text(c);
    }
  }
}

TEST(Schedule, BubbleFormulas) {
  const auto bubble = [](std::string_view name, ScheduleShape shape, StepTimes times) {
    return bubble_formula(make_schedule(name, shape), times);
  };
  const StepTimes odd = {.F = 5, .B = 11, .W = 4, .FB = 14};
  EXPECT_EQ(bubble("sequential", {4, 8}, odd), 8 * 3 * 16);
  EXPECT_EQ(bubble("overlapped", {1, 8}, odd), 0);
  EXPECT_EQ(bubble("gpipe", {4, 8}, odd), 3 * 16);
  EXPECT_EQ(bubble("1f1b", {4, 8}, odd), 3 * 16);
  EXPECT_EQ(bubble("interleaved", {4, 8, 3}, odd), 3 * 16);  // times of a chunk: a third of a rank's
  EXPECT_EQ(bubble("zb-h1", {4, 8}, odd), 3 * (16 - 8));
  EXPECT_EQ(bubble("zb-v", {4, 8}, odd), 3 * 5);
  EXPECT_EQ(bubble("dualpipe", {8, 16}, odd), 3 * (14 + 11 - 12));
  EXPECT_EQ(bubble("dualpipe-v", {4, 8}, odd), 3 * (14 + 11 - 12));
}

TEST(Schedule, TheWorstRankIsIdleForTheFormulaWhenOverlapPays) {
  for (const Case& c : cases()) {
    if (!has_least(c.name)) continue;
    const Schedule s = make_schedule(c.name, c.shape);
    const StepTimes times = {.FB = 2.5};
    EXPECT_EQ(std::ranges::max(simulate(s, times).idle), bubble_formula(s, times)) << text(c);
  }
}

TEST(Schedule, OtherTimesThanTheUsual) {
  const StepTimes times = {.F = 5, .B = 9, .W = 4, .FB = 14};
  for (const std::string_view name : {"gpipe", "1f1b", "interleaved", "zb-h1"}) {
    for (const int P : {2, 4, 8}) {
      const Schedule s = make_schedule(name, {P, 4 * P});
      EXPECT_EQ(std::ranges::max(simulate(s, times).idle), bubble_formula(s, times)) << name << " " << P;
    }
  }
}

TEST(Schedule, ZbVIsNeverIdleBetweenItsFirstAndItsLastStep) {
  for (const int P : {1, 2, 3, 4, 8, 16}) {
    for (const int M : {2 * P, 2 * P + 1, 3 * P, 4 * P, 64}) {
      const Timeline t = simulate(make_schedule("zb-v", {P, std::max(M, 2 * P)}));
      for (int r = 0; r < P; ++r) {
        EXPECT_EQ(t.idle_within(r), 0) << P << " " << M;
        EXPECT_EQ(t.spans[static_cast<size_t>(r)].front().start, r);
        EXPECT_EQ(t.peak_live[static_cast<size_t>(r)], 2 * P);
        EXPECT_EQ(t.peak_kept[static_cast<size_t>(r)], 2 * P);
      }
    }
  }
}

std::string list_of(const Schedule& s, int rank) {
  std::string all;
  for (const Step& step : s.steps[static_cast<size_t>(rank)]) {
    all += (all.empty() ? "" : " ") + step_text(step, s.chunks_per_rank > 1);
  }
  return all;
}

// By hand from the published algorithm: the order within a list also shows where bubble and peak do not.
TEST(Schedule, ListsStepByStep) {
  const Schedule two = make_schedule("dualpipe", {2, 4});
  EXPECT_EQ(list_of(two, 0), "F0.0 F1.2 F0.1 B1.2 F1.3&B0.0 B1.3 I0.1 W0.1");
  EXPECT_EQ(list_of(two, 1), "F1.2 F0.0 F1.3 B0.0 F0.1&B1.2 B0.1 I1.3 W1.3");
  const Schedule four = make_schedule("dualpipe", {4, 8});
  EXPECT_EQ(list_of(four, 0),
            "F0.0 F0.1 F0.2 F1.4 I1.4 W1.4 F1.5 F0.3&B1.5 F1.6&B0.0 B1.6 F1.7&B0.1 B1.7 I0.2 W0.2 I0.3 W0.3");
  EXPECT_EQ(list_of(four, 1),
            "F0.0 F1.4 F0.1 F1.5 F0.2 B1.4 F1.6&B0.0 F0.3&B1.5 F1.7&B0.1 B1.6 B0.2 I1.7 I0.3 W1.7 W0.3");
  const Schedule vee = make_schedule("dualpipe-v", {2, 4});
  EXPECT_EQ(list_of(vee, 0),
            "F0.0 F0.1 F0.2 F1.0 I1.0 W1.0 F1.1 F0.3&B1.1 F1.2&B0.0 B1.2 F1.3&B0.1 B1.3 I0.2 W0.2 I0.3 W0.3");
  EXPECT_EQ(list_of(vee, 1),
            "F0.0 F1.0 F0.1 F1.1 F0.2 B1.0 F1.2&B0.0 F0.3&B1.1 F1.3&B0.1 B1.2 B0.2 I1.3 I0.3 W1.3 W0.3");
  EXPECT_EQ(list_of(make_schedule("sequential", {2, 2}), 1), "F0 B0 F1 B1");
  EXPECT_EQ(list_of(make_schedule("overlapped", {1, 3}), 0), "F0 F1&B0 F2&B1 I2 W2");
  EXPECT_EQ(list_of(make_schedule("overlapped", {1, 1}), 0), "F0 I0 W0");
  EXPECT_EQ(list_of(make_schedule("1f1b", {2, 3}), 0), "F0 F1 B0 F2 B1 B2");
  EXPECT_EQ(list_of(make_schedule("interleaved", {2, 2, 2}), 1), "F0.0 F0.1 F1.0 B1.0 F1.1 B1.1 B0.0 B0.1");
  EXPECT_EQ(list_of(make_schedule("zb-h1", {2, 3}), 1), "F0 I0 F1 I1 W0 F2 I2 W1 W2");
}

std::string refusal(std::string_view name, const ScheduleShape& shape) {
  try {
    make_schedule(name, shape);
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

TEST(Schedule, Refusals) {
  const auto says = [](const std::string& message, std::initializer_list<const char*> words) {
    for (const char* word : words) EXPECT_NE(message.find(word), std::string::npos) << message;
  };
  says(refusal("dualpipe", {4, 6}), {"dualpipe", "6 microbatches", "at least 8"});
  says(refusal("dualpipe", {4, 9}), {"9 microbatches", "even"});
  says(refusal("dualpipe", {3, 8}), {"3 stages", "even"});
  says(refusal("dualpipe-v", {4, 7}), {"dualpipe-v", "7 microbatches", "at least 8"});
  says(refusal("dualpip", {4, 8}), {"\"dualpip\"", "dualpipe", "interleaved"});
  says(refusal("overlapped", {2, 4}), {"overlapped", "one stage", "dualpipe"});
  says(refusal("1f1b", {4, 0}), {"0 microbatches", "at least 1"});
  says(refusal("1f1b", {0, 4}), {"0 stages", "at least 1"});
  says(refusal("1f1b", {4, 8, 2}), {"1f1b", "1 chunk"});
  says(refusal("zb-v", {4, 8, 3}), {"zb-v", "2 chunks"});
  says(refusal("interleaved", {4, 8, -1}), {"-1 chunks"});
  says(refusal("gpipe", {4096, 4096}), {"4096", "steps"});
}

}  // namespace
}  // namespace phalanx
