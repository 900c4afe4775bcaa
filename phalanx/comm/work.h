// An operation in flight, and the handle by which it is awaited.
#pragma once

#include <memory>

#include "phalanx/base/pooled.h"
#include "phalanx/base/task.h"
#include "phalanx/base/trace.h"
#include "phalanx/comm/call.h"

namespace phalanx {

class Engine;

/// A collective that was issued: its coroutine, and its place in the rank's list of operations in flight.
class Operation final : public Waitable, public Pooled<Operation> {
 public:
  Operation(Engine& engine, const Call& call, Task<> task, Tensor result);
  /// Never waits. Of an unfinished operation: gives it up (Engine::give_up).
  ~Operation();
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

  /// Moves all operations of this rank forward. CommError once the world has failed.
  bool poll() override;
  void wait() override;
  const Call& call() const { return call_; }
  /// The result of a finished operation; once. What the calling thread queues on its GPU from now on comes
  /// behind the operation.
  Tensor take_result();

 private:
  friend class Engine;
  enum class State : uint8_t { running, finished, failed };

  bool advance();  // runs the coroutine as far as it comes; true when finished
  void resume();
  void be_taken();
  void begin_span();
  void end_span();
  void unlink();

  Engine& engine_;
  Call call_;
  Task<> task_;
  Tensor result_;
  State state_ = State::running;
  bool started_ = false;
  bool taken_ = false;
  uint64_t serial_;               // in the flight recorder
  Span span_;                     // while traced: begin_ns is not 0
  int64_t waiting_since_ns_ = 0;  // while the rank waits for it, and traced
  Operation* previous_ = nullptr;
  Operation* next_ = nullptr;
};

/// A handle to an operation that has been issued. `co_await work` (or work.wait()) gives its result: the
/// tensor that the call names, or an empty one. Destroying an unfinished Work never waits: it gives the
/// operation up, and with it the world, since the other ranks cannot finish theirs.
class [[nodiscard]] Work {
 public:
  explicit Work(std::unique_ptr<Operation> operation) : operation_(std::move(operation)) {}

  /// Makes progress; never blocks.
  bool done() { return operation_->poll(); }
  /// Blocks; the result stays.
  void finish() { operation_->wait(); }
  /// Blocks; gives the result, once.
  Tensor wait() {
    operation_->wait();
    return operation_->take_result();
  }

  bool await_ready() const noexcept { return false; }
  template <class P>
  void await_suspend(std::coroutine_handle<P> self) noexcept {
    Suspend(*operation_).await_suspend(self);
  }
  Tensor await_resume() { return operation_->take_result(); }

 private:
  std::unique_ptr<Operation> operation_;
};

}  // namespace phalanx
