#include "phalanx/comm/work.h"

#include "phalanx/comm/engine.h"

namespace phalanx {

Operation::Operation(Engine& engine, const Call& call, Task<> task, Tensor result)
    : engine_(engine), call_(call), task_(std::move(task)), result_(std::move(result)), serial_(0) {
  begin_span();
  previous_ = engine_.last_;
  (previous_ ? previous_->next_ : engine_.first_) = this;
  engine_.last_ = this;
}

Operation::~Operation() {
  if (state_ == State::finished && !taken_) {
    try {
      be_taken();
    } catch (const std::exception&) {  // then the GPU has failed, and whoever uses it next says so
    }
  }
  if (state_ != State::running) return;
  unlink();
  engine_.give_up(*this);
}

void Operation::unlink() {
  (previous_ ? previous_->next_ : engine_.first_) = next_;
  (next_ ? next_->previous_ : engine_.last_) = previous_;
  previous_ = nullptr;
  next_ = nullptr;
}

bool Operation::poll() { return engine_.poll(*this); }

void Operation::wait() {
  engine_.wait_for(*this);
  be_taken();
}

Tensor Operation::take_result() {
  be_taken();
  return std::move(result_);
}

void Operation::be_taken() {
  if (!std::exchange(taken_, true)) engine_.transport().taken(call_);
}

void Operation::begin_span() {
  TraceRing* ring = trace_ring();
  if (!ring) return;
  const Fingerprint::Kind kind = call_.fingerprint().kind;
  const bool messages = kind == Fingerprint::Kind::exchange;
  span_ = {.name = kind_name(kind),
           .begin_ns = trace_now(),
           .detail = static_cast<int64_t>(result_.defined() ? result_.bytes() : 0),
           .row = TraceRow::comm,
           .kind = TraceKind::communication,
           .of = ring->label(),
           .collective = kind_name(kind),
           .group = ring->keep(call_.group().name),
           .message = messages ? call_.group().id ^ (call_.sequence() + 1) * 0x9e3779b97f4a7c15u : 0};
}

void Operation::end_span() {
  TraceRing* ring = trace_ring();
  if (span_.begin_ns == 0 || !ring) return;
  span_.end_ns = trace_now();
  if (waiting_since_ns_ != 0) span_.waited_ns += span_.end_ns - waiting_since_ns_;
  ring->record(span_);
}

// Counts, while traced, what the operation adds to its group's counters meanwhile.
void Operation::resume() {
  if (span_.begin_ns == 0) return task_.resume();
  const Traffic& counter = call_.group().traffic[static_cast<size_t>(call_.fingerprint().kind)];
  const Traffic before = counter;
  task_.resume();
  span_.sent += counter.sent - before.sent;
  span_.received += counter.received - before.received;
}

bool Operation::advance() {
  while (!task_.done()) {
    const bool waited = task_.waiting();
    if (waited && !task_.waiting()->poll()) return false;
    resume();
    ++engine_.moves_;
    if (waited && !started_ && !task_.done()) {  // what ends with its first wait has no such moment
      engine_.recorder().advance(serial_, FlightRecorder::State::started);
      started_ = true;
    }
  }
  state_ = State::finished;
  unlink();
  engine_.recorder().advance(serial_, FlightRecorder::State::finished);
  end_span();
  return true;
}

}  // namespace phalanx
