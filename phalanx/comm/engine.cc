#include "phalanx/comm/engine.h"

#include <sched.h>

#include <algorithm>
#include <exception>

#include "phalanx/base/trace.h"

namespace phalanx {
namespace {

// Rounds of waiting before the next patience: spin where every rank has a core, give way, then sleep.
constexpr int kEagerSpins = 100;  // of the spins, without a pause
constexpr int kSpins = 2000;
constexpr int kYields = 100;
constexpr std::chrono::microseconds kSleep{2000};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

std::string list(std::span<const int> ranks) {
  std::string s;
  for (const int r : ranks) s += format("{}{}", s.empty() ? "" : ", ", r);
  return s;
}

std::string ranks_text(std::span<const int> ranks) {
  return format("{} {}", ranks.size() == 1 ? "rank" : "ranks", list(ranks));
}

uint64_t hash(std::string_view name, std::span<const int> members) {
  uint64_t h = 0xcbf29ce484222325u;  // FNV-1a
  const auto mix = [&h](uint64_t v) { h = (h ^ v) * 0x100000001b3u; };
  for (const char c : name) mix(static_cast<unsigned char>(c));
  for (const int m : members) mix(static_cast<uint64_t>(m) + 0x100u);
  return h ^ h >> 32;
}

}  // namespace

std::unique_ptr<GroupInfo> Engine::open_group(GroupInfo info) {
  const uint64_t same = hash(info.name, info.members);
  info.id = same + opened_[same]++ * 0x9e3779b97f4a7c15u;
  info.recorder_slot = page_.recorder.open_group(info.id, info.name);
  auto opened = std::make_unique<GroupInfo>(std::move(info));
  opened->link = transport_.open_group(*opened);
  return opened;
}

void Engine::close_group(GroupInfo& info) noexcept {
  page_.recorder.close_group(info.recorder_slot);
  info.recorder_slot = -1;
}

Work Engine::start(const Call& call, Task<> task, Tensor result, size_t bytes) {
  check(call);
  auto operation = std::make_unique<Operation>(*this, call, std::move(task), std::move(result));
  const GroupInfo& group = call.group();
  operation->serial_ = page_.recorder.issue(group.recorder_slot, group.id, call.sequence(),
                                            call.fingerprint(), static_cast<int64_t>(bytes));
  try {
    operation->advance();
  } catch (...) {
    caught(*operation);
  }
  return Work(std::move(operation));
}

bool Engine::poll(Operation& operation) {
  if (operation.state_ == Operation::State::finished) return true;
  transport_.progress();
  advance_all();
  if (operation.state_ == Operation::State::finished) return true;
  check(operation.call());
  return false;
}

// True when one moved.
bool Engine::advance_all() {
  const uint64_t before = moves_;
  for (Operation* o = first_; o;) {
    Operation* next = o->next_;  // a finished one leaves the list
    try {
      o->advance();
    } catch (...) {
      caught(*o);
    }
    o = next;
  }
  return moves_ != before;
}

// While traced: a wait is a span of the rank's own row, and known to the operation.
class Engine::TracedWait {
 public:
  explicit TracedWait(Operation& operation) : operation_(operation) {
    const bool traced = operation.span_.begin_ns != 0 && operation.state_ != Operation::State::finished;
    if (traced) operation.waiting_since_ns_ = begin_ns_ = trace_now();
  }
  ~TracedWait() {
    TraceRing* ring = begin_ns_ != 0 ? trace_ring() : nullptr;
    if (!ring) return;
    Span wait = operation_.span_;
    wait.name = "wait";
    wait.begin_ns = begin_ns_;
    wait.end_ns = trace_now();
    wait.row = ring->row();
    wait.of.phase = TracePhase::wait;
    wait.message = 0;
    ring->record(wait);
    operation_.waiting_since_ns_ = 0;
  }
  TracedWait(const TracedWait&) = delete;
  TracedWait& operator=(const TracedWait&) = delete;

 private:
  Operation& operation_;
  int64_t begin_ns_ = 0;  // 0: not traced
};

void Engine::wait_for(Operation& operation) {
  const TracedWait traced(operation);
  struct Watch {  // of a wait that is not over at once
    int64_t& total_ns;
    FlightRecorder& recorder;
    int64_t begin_ns = 0;
    void start() {
      if (begin_ns != 0) return;
      begin_ns = trace_now();
      recorder.set_waiting(true);
    }
    ~Watch() {
      if (begin_ns == 0) return;
      total_ns += trace_now() - begin_ns;
      recorder.set_waiting(false);
    }
  } watch{.total_ns = waited_ns_, .recorder = page_.recorder};
  int64_t since_ns = 0;  // of the last move; 0: not slept since
  int round = crowded_ ? kSpins : 0;
  while (operation.state_ != Operation::State::finished) {
    transport_.progress();
    if (advance_all()) {
      since_ns = 0;
      continue;
    }
    check(operation.call());
    ++round;
    if (round > kEagerSpins) watch.start();
    if (round < kSpins) {
      if (round > kEagerSpins) pause();
      continue;
    }
    if (round < kSpins + kYields) {
      sched_yield();
      continue;
    }
    if (since_ns == 0) since_ns = coarse_now_ns();
    examine(operation.call(), since_ns);
    const auto look_again = [&] { return failures_.failed() || advance_all(); };
    transport_.idle(look_again, kSleep);
  }
}

void Engine::check(const Call& doing) {
  if (!given_up_.empty()) fail(std::exchange(given_up_, {}));
  if (const auto failure = failures_.first()) raise(*failure, doing);
}

// Whether the operations in flight can still finish.
void Engine::examine(const Call& waiting_for, int64_t since_ns) {
  const int64_t waited_ns = coarse_now_ns() - since_ns;
  const bool late = waited_ns > std::chrono::nanoseconds(deadlines_.progress).count();
  for (const Operation* o = first_; o; o = o->next_) {
    examine(*o);
    if (late) too_late(*o, waited_ns);
  }
  check(waiting_for);
}

// Nobody called something else instead, or has left without calling it.
void Engine::examine(const Operation& operation) {
  const Call& call = operation.call();
  for (size_t i = 0; i < call.group().members.size(); ++i) {
    if (call.group().is_excused(i)) continue;
    const int member = call.group().members[i];
    RankPage* page = transport_.page(member);
    if (!page || page == &page_) continue;
    const bool left = page->state.load() == RankPage::State::left;
    const auto theirs = page->recorder.find(call.group().id, call.sequence());
    if (theirs && theirs->fingerprint != call.fingerprint()) {
      fail(format("calls differ: operation #{} of group {} is {} on rank {} and {} on rank {}",
                  call.sequence(), call.group().name, call.fingerprint().text(), transport_.rank(),
                  theirs->fingerprint.text(), member));
    } else if (left && !theirs && !page->recorder.reached(call.group().id, call.sequence())) {
      fail(format("rank {} has ended without calling {}, which rank {} is in (its last operation: {})",
                  member, call.text(), transport_.rank(), page->recorder.last_text()));
    }
  }
}

void Engine::too_late(const Operation& operation, int64_t waited_ns) {
  fail(format("rank {} waited {:.1f} s in {}: {}{}", transport_.rank(), static_cast<double>(waited_ns) * 1e-9,
              operation.call().text(), absentees(operation), outside()));
}

// Who did not call the operation; if all did, from whom it still needs something.
std::string Engine::absentees(const Operation& operation) const {
  const Call& call = operation.call();
  std::vector<int> absent;
  std::string last;
  for (size_t i = 0; i < call.group().members.size(); ++i) {
    if (call.group().is_excused(i)) continue;
    const int member = call.group().members[i];
    const RankPage* page = transport_.page(member);
    if (!page || page->recorder.reached(call.group().id, call.sequence())) continue;
    absent.push_back(member);
    const std::string text = page->recorder.last_text();
    last += format("{}rank {}: {}", last.empty() ? "" : "; ", member, text.empty() ? "none" : text);
  }
  if (!absent.empty()) return format("{} never called it (last operation of {})", ranks_text(absent), last);
  std::vector<int> silent;
  if (const auto* waiting = dynamic_cast<const CommWaitable*>(operation.task_.waiting())) {
    for (const int r : waiting->missing()) silent.push_back(r);
    std::ranges::sort(silent);
    silent.erase(std::unique(silent.begin(), silent.end()), silent.end());
  }
  return format("nothing came from {}", ranks_text(silent));
}

// Whom all others wait for, perhaps through each other: the ranks of the world that do not wait.
std::string Engine::outside() const {
  std::string ranks;
  for (int r = 0; r < transport_.size(); ++r) {
    const RankPage* page = transport_.page(r);
    if (!page || page == &page_ || page->recorder.waiting()) continue;
    if (page->state.load() != RankPage::State::running) continue;
    const std::string last = page->recorder.last_text();
    ranks += format("{}rank {} ({})", ranks.empty() ? "" : ", ", r, last.empty() ? "no operation yet" : last);
  }
  return ranks.empty() ? ranks : "; waiting for nobody: " + ranks;
}

void Engine::fail(const std::string& message) noexcept {
  if (failures_.fail(transport_.rank(), message)) transport_.wake_all();
}

// While an exception unwinds, that exception is the reason, and whoever catches it says so; if it is
// swallowed, the next use of the engine fails with this one.
void Engine::give_up(const Operation& operation) noexcept {
  page_.recorder.advance(operation.serial_, FlightRecorder::State::failed);
  const std::string text = format("rank {} gave up {}", transport_.rank(), operation.call().text());
  if (std::uncaught_exceptions() > 0) {
    given_up_ = text;
  } else {
    fail(text);
  }
}

// An operation has thrown: the world fails with it, and so does whoever was waiting, for whatever it was.
void Engine::caught(Operation& operation) {
  operation.state_ = Operation::State::failed;
  operation.unlink();
  page_.recorder.advance(operation.serial_, FlightRecorder::State::failed);
  try {
    throw;
  } catch (const CommError& e) {
    const Failure own{.rank = transport_.rank(),
                      .message = format("{}, in {}", e.what(), operation.call().text())};
    fail(own.message);
    raise(failures_.first().value_or(own), operation.call());
  } catch (const std::exception& e) {
    fail(format("rank {}: {}, in {}", transport_.rank(), e.what(), operation.call().text()));
    throw;
  }
}

void Engine::raise(const Failure& failure, const Call& doing) {
  if (failure.rank == transport_.rank()) throw CommError(failure.message);
  throw CommError(format("{} [rank {} was in {}]", failure.message, transport_.rank(), doing.text()));
}

}  // namespace phalanx
