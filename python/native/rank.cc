#include "python/native/rank.h"

#include <nanobind/nanobind.h>

namespace phalanx::python {
namespace nb = nanobind;
namespace {

constexpr auto kLookForSignals = std::chrono::milliseconds(50);

}  // namespace

void Rank::serve(Group& world) {
  {
    const std::lock_guard lock(mutex_);
    rank_ = world.rank();
    size_ = world.size();
  }
  changed_.notify_all();
  while (const std::shared_ptr<Asked> asked = next()) {
    std::exception_ptr error;
    try {
      asked->job(world);
    } catch (...) {
      error = std::current_exception();
    }
    asked->job = nullptr;  // with the tensors that it refers to
    {
      const std::lock_guard lock(mutex_);
      asked->error = error;
      asked->done = true;
      asked_.pop_front();
    }
    changed_.notify_all();
  }
  pending_.clear();
  low_latency_.clear();
  buffers_.clear();
  const std::lock_guard lock(mutex_);
  disposed_.clear();
  asked_.clear();  // what is left after a failure
  if (!failure_.empty()) throw Error("{}", failure_);
}

std::shared_ptr<Rank::Asked> Rank::next() {
  std::unique_lock lock(mutex_);
  while (true) {
    if (!disposed_.empty() || !dropped_.empty()) {
      std::deque<std::shared_ptr<void>> disposed = std::exchange(disposed_, {});
      const std::vector<int64_t> dropped = std::exchange(dropped_, {});
      lock.unlock();
      disposed.clear();
      for (const int64_t number : dropped) pending_.erase(number);
      lock.lock();
    }
    if (!failure_.empty()) return nullptr;
    if (!asked_.empty()) return asked_.front();
    if (leaving_) return nullptr;
    changed_.wait(lock, [this] {
      return leaving_ || !failure_.empty() || !disposed_.empty() || !dropped_.empty() || !asked_.empty();
    });
  }
}

void Rank::ended(std::exception_ptr error) {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    error_ = std::move(error);
  }
  changed_.notify_all();
}

void Rank::check_open() const {
  if (interrupted_)
    throw Error("rank {}: a call was interrupted, so its world cannot be used any more", rank_);
  if (ended_ && error_) std::rethrow_exception(error_);
  if (ended_ || leaving_)
    throw Error("rank {}: it has left its world (destroy, or the end of run_threads)", rank_);
}

std::shared_ptr<Rank::Asked> Rank::post(Job job) {
  auto asked = std::make_shared<Asked>();
  asked->job = std::move(job);
  {
    const std::lock_guard lock(mutex_);
    check_open();
    asked_.push_back(asked);
  }
  changed_.notify_all();
  return asked;
}

void Rank::ask(Job job) {
  {
    const std::lock_guard lock(mutex_);
    if (calling_) {
      throw Error(
          "rank {}: two threads call it at once; one thread at a time may use a group and its buffers",
          rank_);
    }
    calling_ = true;
  }
  const struct Done {
    Rank& rank;
    ~Done() {
      const std::lock_guard lock(rank.mutex_);
      rank.calling_ = false;
    }
  } done{*this};
  wait_for(*post(std::move(job)));
}

void Rank::wait_for(const Asked& asked) {
  const nb::gil_scoped_release without_gil;
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, kLookForSignals, [&] { return asked.done || ended_; })) {
    lock.unlock();  // whoever has the GIL may want the mutex
    {
      const nb::gil_scoped_acquire gil;
      if (PyErr_CheckSignals() != 0) {
        const std::lock_guard again(mutex_);
        interrupted_ = true;
        throw nb::python_error();
      }
    }
    lock.lock();
  }
  if (asked.error) std::rethrow_exception(asked.error);
  if (asked.done) return;
  if (error_) std::rethrow_exception(error_);
  throw Error("rank {}: it has left its world while a call waited", rank_);
}

void Rank::dispose(std::shared_ptr<void> what) {
  {
    const std::lock_guard lock(mutex_);
    if (!ended_) disposed_.push_back(std::move(what));
  }
  changed_.notify_all();
}

void Rank::leave() {
  {
    const std::lock_guard lock(mutex_);
    leaving_ = true;
    if (interrupted_ && failure_.empty()) failure_ = format("rank {}: interrupted by a signal", rank_);
  }
  changed_.notify_all();
}

void Rank::fail(const std::string& why) {
  {
    const std::lock_guard lock(mutex_);
    if (failure_.empty()) failure_ = why;
    leaving_ = true;
  }
  changed_.notify_all();
}

bool Rank::wait_ended(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, limit, [this] { return ended_; });
}

std::pair<int, int> Rank::place() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return size_ > 0 || ended_; });
  if (size_ == 0 && error_) std::rethrow_exception(error_);
  return {rank_, size_};
}

int64_t Rank::keep(Pending pending) {
  pending_.emplace(++last_pending_, std::move(pending));
  return last_pending_;
}

void Rank::receive(int64_t number) {
  const auto found = pending_.find(number);
  if (found == pending_.end()) throw Error("hook: it was called before");
  Pending pending = std::move(found->second);
  pending_.erase(found);
  pending.hook.wait();
  if (pending.then) pending.then();
}

void Rank::drop(int64_t number) {
  {
    const std::lock_guard lock(mutex_);
    if (!ended_) dropped_.push_back(number);
  }
  changed_.notify_all();
}

ep::LowLatencyBuffer& Rank::low_latency(Group& world, const LowLatencyKind& kind) {
  const auto found = low_latency_.find(kind);
  if (found != low_latency_.end()) return *found->second;
  const ep::LowLatencyOptions options = {.max_tokens = kind.max_tokens,
                                         .width = kind.width,
                                         .dtype = kind.dtype,
                                         .fp8 = kind.fp8,
                                         .mask_after = std::chrono::milliseconds(kind.mask_after_ms)};
  auto buffer =
      std::make_unique<ep::LowLatencyBuffer>(world, ep::ExpertMap::even(kind.experts, world.size()), options);
  return *low_latency_.emplace(kind, std::move(buffer)).first->second;
}

ep::Buffer& Rank::buffer(Group& world, const BufferKind& kind) {
  std::unique_ptr<ep::Buffer>& buffer = buffers_[kind];
  if (!buffer) {
    buffer = std::make_unique<ep::Buffer>(world, kind.experts, ep::BufferOptions{.checked = kind.checked});
  }
  return *buffer;
}

}  // namespace phalanx::python
