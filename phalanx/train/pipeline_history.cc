#include "phalanx/train/pipeline_history.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "phalanx/train/agree.h"

namespace phalanx {
namespace {

double seconds_of(const TimedStep& s) { return static_cast<double>(s.end_ns - s.begin_ns) * 1e-9; }

// A sum over steps of one kind.
struct Sum {
  double seconds = 0;
  int steps = 0;
  double mean() const { return steps > 0 ? seconds / steps : 0; }
};

StepTimes mean_times(const PipelineRecord& record) {
  std::array<Sum, 5> sums;
  for (const auto& steps : record.ranks) {
    for (const TimedStep& s : steps) {
      Sum& sum = sums[static_cast<size_t>(s.step.op)];
      sum.seconds += seconds_of(s);
      ++sum.steps;
    }
  }
  for (Sum& sum : sums) sum.seconds *= record.schedule.slices;
  const auto of = [&](StepOp op) { return sums[static_cast<size_t>(op)]; };
  StepTimes mean = {.F = of(StepOp::F).mean(), .W = of(StepOp::W).mean()};
  mean.B = of(StepOp::B).steps > 0 ? of(StepOp::B).mean() : of(StepOp::I).mean() + mean.W;
  if (of(StepOp::W).steps == 0) mean.W = mean.B / 2;
  mean.FB = of(StepOp::FB).steps > 0 ? of(StepOp::FB).mean() : mean.F + mean.B;
  return mean;
}

std::vector<TimedStep> records_in(const std::string& bytes) {
  std::vector<TimedStep> records(bytes.size() / sizeof(TimedStep));
  std::memcpy(records.data(), bytes.data(), records.size() * sizeof(TimedStep));
  return records;
}

}  // namespace

Bubble bubble_of(const PipelineRecord& record) {
  Bubble bubble = {.mean = mean_times(record)};
  int64_t begin = record.ranks.front().front().begin_ns;
  int64_t end = begin;
  for (const auto& steps : record.ranks) {
    begin = std::min(begin, steps.front().begin_ns);
    end = std::max(end, steps.back().end_ns);
  }
  bubble.makespan = static_cast<double>(end - begin) * 1e-9;
  for (const auto& steps : record.ranks) {
    double busy = 0;
    for (const TimedStep& s : steps) busy += seconds_of(s);
    bubble.measured = std::max(bubble.measured, bubble.makespan - busy);
  }
  const auto took = [&](int rank, size_t step) {
    return seconds_of(record.ranks[static_cast<size_t>(rank)][step]);
  };
  bubble.simulated = std::ranges::max(simulate(record.schedule, took).idle);
  bubble.formula = bubble_formula(record.schedule, bubble.mean);
  return bubble;
}

void PipelineHistory::add(int64_t step, double seconds, const std::vector<TimedStep>& records) {
  if (kept_.size() < kKept) kept_.emplace_back();
  Kept& kept = kept_[added_++ % kKept];
  kept.step = step;
  kept.seconds = seconds;
  kept.records = records;
}

std::optional<PipelineRecord> PipelineHistory::median(const Schedule& schedule, Group& pp,
                                                      int64_t clock_shift) const {
  if (kept_.empty()) return {};
  std::vector<std::pair<double, int64_t>> order;  // all ranks have kept the same steps
  for (size_t i = 0; i < kept_.size(); ++i) order.emplace_back(kept_[i].seconds, i);
  const auto middle = order.begin() + std::ssize(order) / 2;
  std::ranges::nth_element(order, middle);
  const Tensor chosen = Tensor::of(Shape{1}, std::span<const int64_t>(&middle->second, 1));
  pp.broadcast(chosen, 0).wait();
  const Kept& kept = kept_[static_cast<size_t>(chosen.data<int64_t>()[0])];
  std::vector<TimedStep> own = kept.records;
  for (TimedStep& s : own) {
    for (int64_t* time : {&s.called_ns, &s.begin_ns, &s.end_ns}) *time += clock_shift;
  }
  std::string bytes(own.size() * sizeof(TimedStep), '\0');
  std::memcpy(bytes.data(), own.data(), bytes.size());
  const std::vector<std::string> all = gather_texts(pp, bytes);
  if (pp.rank() != 0) return {};
  PipelineRecord record = {.step = kept.step, .schedule = schedule};
  for (const std::string& of_rank : all) record.ranks.push_back(records_in(of_rank));
  return record;
}

}  // namespace phalanx
