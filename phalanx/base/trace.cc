#include "phalanx/base/trace.h"

#include <algorithm>
#include <chrono>

namespace phalanx {
namespace {

thread_local TraceRing* current = nullptr;

}  // namespace

const char* phase_name(TracePhase phase) {
  static constexpr std::array kNames = {"",          "forward",
                                        "backward",  "weight gradient",
                                        "recompute", "forward and backward overlapped",
                                        "reduce",    "gather",
                                        "update",    "wait"};
  return kNames[static_cast<size_t>(phase)];
}

std::vector<Span> TraceRing::spans() const {
  const uint64_t n = std::min<uint64_t>(count_, spans_.size());
  std::vector<Span> out;
  out.reserve(n);
  for (uint64_t i = count_ - n; i < count_; ++i) out.push_back(spans_[i % spans_.size()]);
  return out;
}

const char* TraceRing::keep(std::string_view text) { return texts_.emplace(text).first->c_str(); }

TraceRing* trace_ring() { return current; }
TraceLabel trace_label() { return current ? current->label() : TraceLabel{}; }

void label_microbatches(int compute, int beside) {
  if (!current) return;
  current->label(TraceRow::compute).microbatch = compute;
  current->label(TraceRow::beside).microbatch = beside;
}

TraceScope::TraceScope(TraceRing* ring) : previous_(current) { current = ring; }
TraceScope::~TraceScope() { current = previous_; }

int64_t trace_now() {
  using namespace std::chrono;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

TracePart::TracePart(std::string_view unit, const char* part, TracePhase phase) : ring_(current) {
  if (ring_) begin({ring_->keep(unit), part, phase, ring_->label().microbatch});
}

TracePart::TracePart(const TraceLabel& of, TracePhase phase) : ring_(*of.unit != 0 ? current : nullptr) {
  if (ring_) begin({of.unit, of.part, phase, of.microbatch});
}

void TracePart::begin(const TraceLabel& label) {
  row_ = ring_->row();
  outer_ = ring_->label();
  ring_->label() = label;
  begin_ = trace_now();
}

TracePart::~TracePart() {
  if (!ring_) return;
  TraceLabel& label = ring_->label(row_);
  ring_->record(
      {.begin_ns = begin_, .end_ns = trace_now(), .row = row_, .kind = TraceKind::part, .of = label});
  label = outer_;
}

TraceNamed::TraceNamed(std::string_view unit, const char* part, TracePhase phase) : ring_(current) {
  if (!ring_) return;
  outer_ = ring_->label();
  ring_->label() = {ring_->keep(unit), part, phase, outer_.microbatch};
}

TraceNamed::TraceNamed(int microbatch) : ring_(current) {
  if (!ring_) return;
  outer_ = ring_->label();
  ring_->label() = {.microbatch = microbatch};
}

TraceNamed::~TraceNamed() {
  if (ring_) ring_->label() = outer_;
}

TraceBeside::TraceBeside() : ring_(current) {
  if (ring_) ring_->set_row(TraceRow::beside);
}

TraceBeside::~TraceBeside() {
  if (ring_) ring_->set_row(TraceRow::compute);
}

}  // namespace phalanx
