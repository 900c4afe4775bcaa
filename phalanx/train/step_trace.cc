#include "phalanx/train/step_trace.h"

#include <algorithm>
#include <limits>

#include "phalanx/train/agree.h"

namespace phalanx {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

int64_t least(Group& group, int64_t mine) {
  const Tensor all = group.all_gather(Tensor::of(Shape{1}, std::span<const int64_t>(&mine, 1))).wait();
  return std::ranges::min(all.span<int64_t>());
}

}  // namespace

std::string rank_title(const Mesh& mesh) {
  std::string title = format("rank {}", mesh.world().rank());
  for (int a = 0; a < kAxes; ++a) {
    const auto axis = static_cast<Axis>(a);
    const bool follows = axis == Axis::edp;  // from the others
    if (!follows && mesh.size(axis) > 1) title += format(" {}={}", axis_name(axis), mesh.coordinate(axis));
  }
  return title;
}

// What a step leaves is made by the first of them.
StepTrace::Scope::Scope(StepTrace& trace, int64_t step)
    : host_(trace.steps_.has(step) ? &trace.ring() : nullptr),
      device_(trace.steps_.has(step) ? trace.on_device_.get() : nullptr) {}

TraceRing& StepTrace::ring() {
  if (!ring_) {
    ring_ = std::make_unique<TraceRing>();
    on_device_ = std::make_unique<DeviceTrace>(device_);
  }
  return *ring_;
}

std::string StepTrace::collect(const Mesh& mesh, Group& world) {
  std::vector<Span> spans = ring_ ? ring_->spans() : std::vector<Span>();
  lost_ = ring_ ? ring_->count() - spans.size() : 0;
  if (on_device_) std::ranges::copy(on_device_->take(), std::back_inserter(spans));
  const ChromeRank rank = {.rank = world.rank(), .name = rank_title(mesh), .shift_ns = clock_shift_};
  std::string file = gather_trace(spans, rank, world);
  steps_.count = 0;
  on_device_.reset();
  ring_.reset();
  return file;
}

std::string gather_trace(std::span<const Span> spans, ChromeRank rank, Group& world) {
  int64_t begin = kNever;
  for (const Span& s : spans) begin = std::min(begin, s.begin_ns + rank.shift_ns);
  const int64_t origin = least(world, begin);
  if (origin != kNever) rank.shift_ns -= origin;
  const std::vector<std::string> all = gather_texts(world, chrome_events(spans, rank));
  return world.rank() == 0 ? chrome_trace(all) : "";
}

}  // namespace phalanx
