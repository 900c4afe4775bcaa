#include "phalanx/parallel/schedule/check.h"

#include <algorithm>
#include <deque>
#include <map>

#include "phalanx/base/text.h"

namespace phalanx {
namespace {

constexpr size_t kMostProblems = 5;  // told; one mistake often shows in many places

// What happened to one microbatch in one chunk of a rank.
struct Passage {
  int forwards = 0;
  int backwards = 0;
};

// Reads one rank's list and writes down what is wrong with it.
class RankReader {
 public:
  RankReader(const Schedule& schedule, int rank, std::vector<std::string>& problems)
      : schedule_(schedule), rank_(rank), problems_(problems) {}

  void read() {
    const Steps& steps = schedule_.steps[static_cast<size_t>(rank_)];
    for (size_t i = 0; i < steps.size(); ++i) {
      at_ = i;
      if (!exists(steps[i])) continue;
      if (steps[i].goes_forward()) forward(steps[i].chunk, steps[i].microbatch);
      if (steps[i].goes_backward()) backward(steps[i]);
      if (steps[i].op == StepOp::W) weights(steps[i]);
    }
    for (int c = 0; c < schedule_.chunks_per_rank; ++c) end_of_chunk(c);
  }

 private:
  template <class... T>
  void problem(std::string_view pattern, const T&... values) {
    problems_.push_back(format("rank {}: ", rank_) + format(pattern, values...));
  }
  std::string here() const {
    const Step& step = schedule_.steps[static_cast<size_t>(rank_)][at_];
    return format("{} (step {})", step_text(step, schedule_.chunks_per_rank > 1, schedule_.slices), at_);
  }

  std::string name(int microbatch) const { return microbatch_text(microbatch, schedule_.slices); }

  bool can_pass(int chunk, int microbatch) const {
    return chunk >= 0 && chunk < schedule_.chunks_per_rank && microbatch >= 0 &&
           microbatch < schedule_.microbatches && schedule_.passes(microbatch, chunk);
  }
  bool exists(const Step& step) {
    if (can_pass(step.chunk, step.microbatch) &&
        can_pass(step.backward_chunk(), step.backward_microbatch())) {
      return true;
    }
    problem("{} names a chunk or microbatch that does not exist there", here());
    return false;
  }

  void forward(int chunk, int microbatch) {
    if (++passages_[{chunk, microbatch}].forwards == 2) {
      problem("{} is the second forward of microbatch {} through chunk {}", here(), name(microbatch), chunk);
    }
    if (microbatch % schedule_.slices > 0 && passages_[{chunk, microbatch - 1}].forwards == 0) {
      problem("{} comes before the forward of {}, whose keys and values it sees", here(),
              name(microbatch - 1));
    }
  }
  void backward(const Step& step) {
    const int chunk = step.backward_chunk();
    const int microbatch = step.backward_microbatch();
    Passage& passage = passages_[{chunk, microbatch}];
    if (++passage.backwards == 2) {
      problem("{} is the second backward of microbatch {} through chunk {}", here(), name(microbatch), chunk);
    }
    if (passage.forwards == 0) problem("{} comes before the forward of its microbatch", here());
    const bool last_slice = (microbatch + 1) % schedule_.slices == 0;
    if (!last_slice && passages_[{chunk, microbatch + 1}].backwards == 0) {
      problem("{} comes before the backward of {}, which sees its keys and values", here(),
              name(microbatch + 1));
    }
    if (step.op == StepOp::I) put_off_[chunk].push_back(microbatch);
  }
  void weights(const Step& step) {
    std::deque<int>& queue = put_off_[step.chunk];
    const auto it = std::ranges::find(queue, step.microbatch);
    if (it == queue.end()) {
      problem("{} has no I before it whose weight gradients are still to do", here());
      return;
    }
    if (it != queue.begin()) {
      problem("{} comes before W of microbatch {}, put off earlier", here(), name(queue.front()));
    }
    queue.erase(it);
  }
  void end_of_chunk(int chunk) {
    const int stage = schedule_.stage(rank_, chunk);
    for (int m = 0; m < schedule_.microbatches; ++m) {
      if (!schedule_.passes(m, chunk)) continue;
      const Passage& passage = passages_[{chunk, m}];
      if (passage.forwards == 0) {
        problem("microbatch {} never goes forward through stage {} (chunk {})", name(m), stage, chunk);
      }
      if (passage.backwards == 0 && schedule_.has_backward) {
        problem("microbatch {} never goes backward through stage {} (chunk {})", name(m), stage, chunk);
      }
    }
    for (const int m : put_off_[chunk]) {
      problem("I of microbatch {} in chunk {} is never followed by its W", name(m), chunk);
    }
  }

  const Schedule& schedule_;
  int rank_;
  std::vector<std::string>& problems_;
  size_t at_ = 0;
  std::map<std::pair<int, int>, Passage> passages_;  // by chunk and microbatch
  std::map<int, std::deque<int>> put_off_;           // by chunk
};

// The most held at once, each from a forward until a step of which `frees` is true.
template <class Frees>
std::vector<int> peaks(const Schedule& schedule, Frees frees) {
  std::vector<int> out;
  for (const Steps& steps : schedule.steps) {
    int held = 0;
    int most = 0;
    for (const Step& step : steps) {
      if (step.goes_forward()) most = std::max(most, ++held);
      if (frees(step)) --held;
    }
    out.push_back(most);
  }
  return out;
}

}  // namespace

std::string incompleteness(const Schedule& schedule) {
  if (static_cast<int>(schedule.steps.size()) != schedule.ranks) {
    return format("{} lists of steps for {} ranks", schedule.steps.size(), schedule.ranks);
  }
  if (schedule.slices < 1 || schedule.microbatches % schedule.slices != 0) {
    return format("{} slices do not make whole microbatches of {}", schedule.microbatches, schedule.slices);
  }
  std::vector<std::string> problems;
  for (int r = 0; r < schedule.ranks; ++r) RankReader(schedule, r, problems).read();
  std::string text;
  for (size_t i = 0; i < std::min(problems.size(), kMostProblems); ++i) {
    text += (i == 0 ? "" : "; ") + problems[i];
  }
  if (problems.size() > kMostProblems) text += format("; and {} more", problems.size() - kMostProblems);
  return text;
}

std::string check_schedule(const Schedule& schedule) {
  const std::string text = incompleteness(schedule);
  return text.empty() ? deadlock(schedule) : text;
}

std::vector<int> peak_live(const Schedule& schedule) {
  return peaks(schedule, [](const Step& step) { return step.goes_backward(); });
}

std::vector<int> peak_kept(const Schedule& schedule) {
  return peaks(schedule, [](const Step& step) {
    return step.op == StepOp::B || step.op == StepOp::FB || step.op == StepOp::W;
  });
}

}  // namespace phalanx
