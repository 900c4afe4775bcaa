// Coroutines whose every wait is a written word: `co_await`.
//
// A Task starts when it is run, awaited or resumed. Tasks nest: the outermost one (the root) remembers the
// innermost frame and what it waits for, so that a runner resumes only that frame, however deep it is.
// Whoever resumes a task decides what else happens at its waits: `run` just waits, `overlap` lets another
// task run there.
#pragma once

#include <coroutine>
#include <cstddef>
#include <exception>
#include <optional>
#include <utility>

#include "phalanx/base/check.h"

namespace phalanx {

/// Something a task can wait for. Errors of the awaited operation are thrown by poll and wait.
class Waitable {
 public:
  virtual bool poll() = 0;  ///< makes progress; true when finished; never blocks
  virtual void wait() = 0;  ///< returns when finished

 protected:
  ~Waitable() = default;
};

namespace detail {

// Coroutine frames come from free lists of the calling thread, one for each class of sizes, so that a steady
// state allocates nothing.
void* frame_allocate(size_t bytes);
void frame_release(void* frame, size_t bytes) noexcept;

struct PromiseBase {
  std::coroutine_handle<> continuation;  // the task that awaits this one
  PromiseBase* root = this;
  std::coroutine_handle<> innermost;  // of a root: the frame to resume
  Waitable* waiting = nullptr;        // of a root: what that frame waits for
  std::exception_ptr error;

  static void* operator new(size_t bytes) { return frame_allocate(bytes); }
  static void operator delete(void* frame, size_t bytes) noexcept { frame_release(frame, bytes); }

  std::suspend_always initial_suspend() noexcept { return {}; }
  struct ReturnToParent {
    bool await_ready() noexcept { return false; }
    template <class P>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<P> self) noexcept {
      PromiseBase& p = self.promise();
      if (!p.continuation) return std::noop_coroutine();
      p.root->innermost = p.continuation;
      return p.continuation;
    }
    void await_resume() noexcept {}
  };
  ReturnToParent final_suspend() noexcept { return {}; }
  void unhandled_exception() noexcept { error = std::current_exception(); }
};

template <class T>
struct Promise : PromiseBase {
  std::optional<T> value;
  std::coroutine_handle<Promise> get_return_object() {
    return std::coroutine_handle<Promise>::from_promise(*this);
  }
  template <class U>
  void return_value(U&& v) {
    value.emplace(std::forward<U>(v));
  }
  T take() {
    if (error) std::rethrow_exception(error);
    return std::move(*value);
  }
};

template <>
struct Promise<void> : PromiseBase {
  std::coroutine_handle<Promise> get_return_object() {
    return std::coroutine_handle<Promise>::from_promise(*this);
  }
  void return_void() {}
  void take() const {
    if (error) std::rethrow_exception(error);
  }
};

}  // namespace detail

/// A coroutine that yields a T. Move-only; destroying it destroys the whole chain of suspended frames and
/// never waits. Coroutines take their arguments by value, except objects that outlive every task (Tape&,
/// Group&, this).
template <class T = void>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::Promise<T>;
  using Handle = std::coroutine_handle<promise_type>;

  Task(Handle handle) : handle_(handle) { handle_.promise().innermost = handle_; }
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task& operator=(Task&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Task() {
    if (handle_) handle_.destroy();
  }

  /// Runs until the next wait or the end; throws what the task has thrown.
  void resume() {
    PromiseBase& root = handle_.promise();
    root.waiting = nullptr;
    root.innermost.resume();
    if (root.error) std::rethrow_exception(root.error);
  }
  bool done() const { return handle_.done(); }
  /// What the task waits for; null before the first resume and after the end.
  Waitable* waiting() const { return handle_.promise().waiting; }
  /// The value of a task that is done; once.
  T result() {
    PHX_CHECK(done(), "result of an unfinished task");
    return handle_.promise().take();
  }

  bool await_ready() const noexcept { return false; }
  template <class P>
  std::coroutine_handle<> await_suspend(std::coroutine_handle<P> parent) noexcept {
    PromiseBase& self = handle_.promise();
    self.continuation = parent;
    self.root = parent.promise().root;
    self.root->innermost = handle_;
    return handle_;
  }
  T await_resume() { return handle_.promise().take(); }

 private:
  using PromiseBase = detail::PromiseBase;
  Handle handle_;
};

/// Suspends the awaiting task until `waitable` has finished. It suspends even if that is already so: the
/// order of issue depends on the program alone.
class Suspend {
 public:
  explicit Suspend(Waitable& waitable) : waitable_(&waitable) {}
  bool await_ready() const noexcept { return false; }
  template <class P>
  void await_suspend(std::coroutine_handle<P> self) noexcept {
    detail::PromiseBase& root = *self.promise().root;
    root.waiting = waitable_;
    root.innermost = self;
  }
  void await_resume() const noexcept {}

 private:
  Waitable* waitable_;
};

/// Runs a task to its end on this thread, waiting at its waits.
template <class T>
T run(Task<T> task) {
  task.resume();
  while (!task.done()) {
    task.waiting()->wait();
    task.resume();
  }
  return task.result();
}

/// The value of a Task<void> in a pair.
struct Unit {};

namespace detail {
template <class T>
using Lifted = std::conditional_t<std::is_void_v<T>, Unit, T>;

template <class T>
Lifted<T> lifted_result(Task<T>& task) {
  if constexpr (std::is_void_v<T>) {
    task.result();
    return Unit{};
  } else {
    return task.result();
  }
}
}  // namespace detail

/// Runs two tasks in strict alternation: a to its first wait, b to its first wait, a to its second, … When
/// one ends (or throws: the other is then destroyed) the rest of the other runs alone. Nests: an overlap
/// inside an overlapped task gives way to the outer one at each of its waits.
template <class A, class B>
Task<std::pair<detail::Lifted<A>, detail::Lifted<B>>> overlap(Task<A> a, Task<B> b) {
  a.resume();
  b.resume();
  while (!a.done() || !b.done()) {
    if (!a.done()) {
      co_await Suspend(*a.waiting());
      a.resume();
    }
    if (!b.done()) {
      co_await Suspend(*b.waiting());
      b.resume();
    }
  }
  detail::Lifted<A> first = detail::lifted_result(a);
  detail::Lifted<B> second = detail::lifted_result(b);
  co_return std::pair(std::move(first), std::move(second));
}

}  // namespace phalanx
