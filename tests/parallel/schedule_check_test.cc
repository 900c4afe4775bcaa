// Broken schedules: each kind of mistake is told, with ranks, steps and what they wait for.
#include "phalanx/parallel/schedule/check.h"

#include <gtest/gtest.h>

#include <random>

#include "phalanx/base/error.h"
#include "phalanx/parallel/schedule/simulate.h"

namespace phalanx {
namespace {

using enum StepOp;

void expect_says(const std::string& text, std::initializer_list<const char*> words) {
  for (const char* word : words) EXPECT_NE(text.find(word), std::string::npos) << word << " in: " << text;
}

Schedule of_lists(std::vector<Steps> steps, int microbatches) {
  Schedule s;
  s.name = "test";
  s.ranks = static_cast<int>(steps.size());
  s.microbatches = microbatches;
  s.steps = std::move(steps);
  return s;
}

TEST(ScheduleCheck, TwoStagesThatWaitForEachOther) {
  // Rank 0 wants the gradient of microbatch 0 before it sends microbatch 1, rank 1 the reverse.
  const Schedule s = of_lists({{{F, 0, 0}, {B, 0, 0}, {F, 0, 1}, {B, 0, 1}},  //
                               {{F, 0, 0}, {F, 0, 1}, {B, 0, 0}, {B, 0, 1}}},
                              2);
  EXPECT_EQ(incompleteness(s), "");
  expect_says(check_schedule(s),
              {"rank 0 before B0 (step 1) waits for the gradient of microbatch 0 from rank 1",
               "which stands before F1 (step 1)",
               "rank 1 before F1 (step 1) waits for the activations of microbatch 1 from "
               "rank 0"});
  EXPECT_THROW(simulate(s), Error);
}

TEST(ScheduleCheck, SendsOfTwoRanksThatCross) {
  // In the steady part of 1F1B one rank sends activations down while the next sends a gradient up: one by
  // one, each waits until the other receives.
  const Schedule s = make_schedule("1f1b", {2, 4});
  expect_says(deadlock(s, Rendezvous::unbatched),
              {"rank 0 before B0 (step 2) waits for rank 1 to take the activations of microbatch 1",
               "rank 1 before F1 (step 2) waits for rank 0 to take the gradient of microbatch 0"});
  EXPECT_EQ(deadlock(s, Rendezvous::batched), "");
}

TEST(ScheduleCheck, SomeSchedulesNeedAReceivePostedAhead) {
  const Schedule s = make_schedule("dualpipe-v", {4, 8});
  expect_says(deadlock(s, Rendezvous::batched), {"to take the activations"});
  EXPECT_EQ(deadlock(s, Rendezvous::posted_ahead), "");
}

TEST(ScheduleCheck, MessagesOfOneChannelInAnotherOrderThanTheyAreTaken) {
  const Schedule s = of_lists({{{F, 0, 0}, {F, 0, 1}, {B, 0, 0}, {B, 0, 1}},  //
                               {{F, 0, 1}, {F, 0, 0}, {B, 0, 0}, {B, 0, 1}}},
                              2);
  expect_says(check_schedule(s), {"rank 0 before F1 (step 1) waits for rank 1 to take the activations of "
                                  "microbatch 0",
                                  "rank 1 before F1 (step 0) waits for the activations of microbatch 1"});
}

TEST(ScheduleCheck, EachKindOfIncompleteness) {
  const Steps good = {{F, 0, 0}, {F, 0, 1}, {I, 0, 0}, {I, 0, 1}, {W, 0, 0}, {W, 0, 1}};
  EXPECT_EQ(check_schedule(of_lists({good}, 2)), "");
  const auto broken = [&good](auto change, std::initializer_list<const char*> words) {
    Steps steps = good;
    change(steps);
    const Schedule s = of_lists({steps}, 2);
    expect_says(incompleteness(s), words);
    EXPECT_EQ(check_schedule(s), incompleteness(s));
  };
  broken([](Steps& s) { s.erase(s.begin() + 1); },
         {"rank 0: I1 (step 2) comes before the forward", "microbatch 1 never goes forward through stage 0"});
  broken([](Steps& s) { s.erase(s.begin() + 3); },
         {"W1 (step 4) has no I", "microbatch 1 never goes backward through stage 0 (chunk 0)"});
  broken([](Steps& s) { s.erase(s.begin() + 5); },
         {"I of microbatch 1 in chunk 0 is never followed by its W"});
  broken([](Steps& s) { s.push_back({F, 0, 1}); }, {"F1 (step 6) is the second forward of microbatch 1"});
  broken([](Steps& s) { s.push_back({B, 0, 1}); }, {"B1 (step 6) is the second backward of microbatch 1"});
  broken([](Steps& s) { s.push_back({W, 0, 1}); }, {"W1 (step 6) has no I before it"});
  broken([](Steps& s) { std::swap(s[4], s[5]); }, {"W1 (step 4) comes before W of microbatch 0"});
  broken([](Steps& s) { s[0].microbatch = 2; },
         {"F2 (step 0) names a chunk or microbatch that does not exist"});
  broken([](Steps& s) { s[5].chunk = 1; }, {"W1 (step 5) names a chunk", "never followed"});
}

TEST(ScheduleCheck, AListForEachRank) {
  Schedule s = make_schedule("1f1b", {4, 4});
  s.steps.pop_back();
  expect_says(check_schedule(s), {"3 lists of steps for 4 ranks"});
}

TEST(ScheduleCheck, ManyProblemsAreCounted) {
  Schedule s = make_schedule("gpipe", {4, 8});
  s.steps[2].clear();
  expect_says(check_schedule(s), {"rank 2: microbatch 0 never goes forward", "and 11 more"});
}

TEST(ScheduleCheck, AMicrobatchBelongsToOneDirection) {
  Schedule s = make_schedule("dualpipe", {2, 4});
  s.steps[0][0].microbatch = 3;
  expect_says(check_schedule(s), {"rank 0: F0.3 (step 0) names a chunk or microbatch"});
}

// Lists of a random kind with one deletion, or with two neighbours or any two steps exchanged: a mistake is
// told, and what passes does run.
TEST(ScheduleCheck, RandomChangesAreToldOrHarmless) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const auto below = [&random](size_t n) { return random() % n; };
  int told = 0;
  int harmless = 0;
  for (int round = 0; round < 2000; ++round) {
    const ScheduleEntry& entry = *schedule_entries()[below(schedule_entries().size())];
    if (entry.name == "overlapped") continue;  // it has one stage
    const int P = 2 * (1 + static_cast<int>(below(2)));
    Schedule s = make_schedule(entry.name, {P, 2 * P + 2 * static_cast<int>(below(3))});
    Steps& steps = s.steps[below(s.steps.size())];
    const size_t at = below(steps.size());
    const size_t change = below(3);
    if (change == 0) {
      steps.erase(steps.begin() + static_cast<ptrdiff_t>(at));
      EXPECT_NE(check_schedule(s), "") << entry.name << " without step " << at;
      continue;
    }
    std::swap(steps[at], steps[change == 1 ? std::min(at + 1, steps.size() - 1) : below(steps.size())]);
    if (!check_schedule(s).empty()) {
      ++told;
      continue;
    }
    ++harmless;
    const Timeline t = simulate(s);
    for (size_t r = 0; r < s.steps.size(); ++r) EXPECT_EQ(t.spans[r].size(), s.steps[r].size());
  }
  EXPECT_GT(told, 100);
  EXPECT_GT(harmless, 10);
}

TEST(ScheduleCheck, WhatCannotRunInTimeIsNeverCalledSound) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  int stopped = 0;
  for (int round = 0; round < 500; ++round) {
    Schedule s = make_schedule("interleaved", {4, 8});
    Steps& steps = s.steps[random() % s.steps.size()];
    std::swap(steps[random() % steps.size()], steps[random() % steps.size()]);
    try {
      simulate(s);
    } catch (const Error& e) {
      ++stopped;
      EXPECT_NE(check_schedule(s), "");
      expect_says(e.what(), {"waits for"});
    }
  }
  EXPECT_GT(stopped, 10);
}

}  // namespace
}  // namespace phalanx
