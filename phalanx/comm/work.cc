#include "phalanx/comm/work.h"

#include "phalanx/base/trace.h"
#include "phalanx/comm/engine.h"

namespace phalanx {

Operation::Operation(Engine& engine, const Call& call, Task<> task, Tensor result)
    : engine_(engine),
      call_(call),
      task_(std::move(task)),
      result_(std::move(result)),
      serial_(0),
      begin_ns_(trace_ring() ? trace_now() : 0) {
  previous_ = engine_.last_;
  (previous_ ? previous_->next_ : engine_.first_) = this;
  engine_.last_ = this;
}

Operation::~Operation() {
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

void Operation::wait() { engine_.wait_for(*this); }

bool Operation::advance() {
  while (!task_.done()) {
    const bool waited = task_.waiting();
    if (waited && !task_.waiting()->poll()) return false;
    task_.resume();
    ++engine_.moves_;
    if (waited && !started_ && !task_.done()) {  // what ends with its first wait has no such moment
      engine_.recorder().advance(serial_, FlightRecorder::State::started);
      started_ = true;
    }
  }
  state_ = State::finished;
  unlink();
  engine_.recorder().advance(serial_, FlightRecorder::State::finished);
  if (TraceRing* ring = trace_ring()) {
    ring->record({.name = kind_name(call_.fingerprint().kind),
                  .begin_ns = begin_ns_,
                  .end_ns = trace_now(),
                  .detail = static_cast<int64_t>(result_.defined() ? result_.bytes() : 0),
                  .row = TraceRow::comm});
  }
  return true;
}

}  // namespace phalanx
