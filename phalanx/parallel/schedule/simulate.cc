#include "phalanx/parallel/schedule/simulate.h"

#include <algorithm>
#include <limits>

#include "phalanx/base/error.h"
#include "phalanx/parallel/schedule/check.h"

namespace phalanx {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// When a microbatch has left a chunk, forward and backward.
class Clock {
 public:
  explicit Clock(const Schedule& s)
      : schedule_(s),
        left_(2 * static_cast<size_t>(s.ranks) * static_cast<size_t>(s.chunks_per_rank) *
                  static_cast<size_t>(s.microbatches),
              kNever) {}

  double& left(bool backward, ChunkPlace at, int microbatch) {
    const int chunk = (backward ? schedule_.ranks : 0) + at.rank;
    const int row = chunk * schedule_.chunks_per_rank + at.chunk;
    return left_[static_cast<size_t>(row) * static_cast<size_t>(schedule_.microbatches) +
                 static_cast<size_t>(microbatch)];
  }

  // When everything is there that the step of this rank needs.
  double ready(const Step& step, int rank) {
    double time = 0;
    if (step.goes_forward()) {
      if (const auto from = schedule_.previous({rank, step.chunk}))
        time = left(false, *from, step.microbatch);
    }
    if (step.goes_backward()) {
      const ChunkPlace here = {rank, step.backward_chunk()};
      time = std::max(time, left(false, here, step.backward_microbatch()));
      if (const auto from = schedule_.next(here)) {
        time = std::max(time, left(true, *from, step.backward_microbatch()));
      }
    }
    if (step.op == StepOp::W) time = left(true, {rank, step.chunk}, step.microbatch);
    return time;
  }

  void finish(const Step& step, int rank, double end) {
    if (step.goes_forward()) left(false, {rank, step.chunk}, step.microbatch) = end;
    if (step.goes_backward()) left(true, {rank, step.backward_chunk()}, step.backward_microbatch()) = end;
  }

 private:
  const Schedule& schedule_;
  std::vector<double> left_;
};

}  // namespace

double Timeline::idle_within(int rank) const {
  const std::vector<StepSpan>& own = spans[static_cast<size_t>(rank)];
  double sum = 0;
  for (size_t i = 1; i < own.size(); ++i) sum += own[i].start - own[i - 1].end;
  return sum;
}

Timeline simulate(const Schedule& schedule, const StepTimes& times) {
  return simulate(schedule, [&](int rank, size_t step) {
    return times.of(schedule.steps[static_cast<size_t>(rank)][step].op) / schedule.slices;
  });
}

Timeline simulate(const Schedule& schedule, FunctionRef<double(int rank, size_t step)> time) {
  Clock clock(schedule);
  Timeline out;
  out.spans.resize(schedule.steps.size());
  bool moved = true;
  size_t left = 0;
  for (const Steps& steps : schedule.steps) left += steps.size();
  while (left > 0 && moved) {
    moved = false;
    for (size_t r = 0; r < schedule.steps.size(); ++r) {
      std::vector<StepSpan>& spans = out.spans[r];
      while (spans.size() < schedule.steps[r].size()) {
        const Step& step = schedule.steps[r][spans.size()];
        const double ready = clock.ready(step, static_cast<int>(r));
        if (ready == kNever) break;
        const double start = std::max(ready, spans.empty() ? 0 : spans.back().end);
        spans.push_back({start, start + time(static_cast<int>(r), spans.size())});
        clock.finish(step, static_cast<int>(r), spans.back().end);
        out.makespan = std::max(out.makespan, spans.back().end);
        --left;
        moved = true;
      }
    }
  }
  if (left > 0) throw Error("schedule {} cannot run: {}", schedule.name, deadlock(schedule));
  for (const std::vector<StepSpan>& spans : out.spans) {
    double busy = 0;
    for (const StepSpan& span : spans) busy += span.end - span.start;
    out.idle.push_back(out.makespan - busy);
  }
  out.peak_live = peak_live(schedule);
  out.peak_kept = peak_kept(schedule);
  return out;
}

}  // namespace phalanx
