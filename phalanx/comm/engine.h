// Moves one rank's operations forward, and notices when they cannot.
#pragma once

#include <chrono>
#include <map>
#include <string>

#include "phalanx/base/between_ranges.h"
#include "phalanx/comm/transport/transport.h"
#include "phalanx/comm/work.h"

namespace phalanx {

/// How long a rank waits for others before it says who is missing.
struct Deadlines {
  /// None of a waiting rank's operations moves forward.
  std::chrono::milliseconds progress = std::chrono::minutes(10);
  /// A process gives no sign of life.
  std::chrono::milliseconds liveness = std::chrono::seconds(10);
};

/// One for each rank, made and used by its thread alone; it has no thread of its own: whoever waits drives
/// all of the rank's operations, and while the rank computes, the messages of those in flight move between
/// ranges of parallel_for. The first error of any rank wins; every rank that waits then throws it as a
/// CommError.
class Engine {
 public:
  Engine(Transport& transport, const Deadlines& deadlines)
      : transport_(transport),
        failures_(transport.failures()),
        page_(*transport.page(transport.rank())),
        crowded_(transport.crowded()),
        deadlines_(deadlines) {}

  Transport& transport() { return transport_; }
  FlightRecorder& recorder() { return page_.recorder; }

  /// Makes a group known here and to the transport; `info` has its name, members and rank. Every member calls
  /// it, in the same order for groups of the same name and members.
  std::unique_ptr<GroupInfo> open_group(GroupInfo info);
  void close_group(GroupInfo& info) noexcept;

  /// Issues: runs the task to its first wait. `bytes` of this rank's tensor, for the recorder.
  Work start(const Call& call, Task<> task, Tensor result, size_t bytes);

  /// Ends the world because of this rank, if it has not failed already.
  void fail(const std::string& message) noexcept;
  /// Seconds that this rank has waited for others; waits of about a microsecond do not count.
  double waited() const { return static_cast<double>(waited_ns_) * 1e-9; }
  /// An operation that was given up and is not accounted for yet, or "".
  const std::string& given_up() const { return given_up_; }

 private:
  friend class Operation;
  class TracedWait;

  bool poll(Operation& operation);
  void wait_for(Operation& operation);
  bool advance_all();
  void check(const Call& doing);
  void examine(const Call& waiting_for, int64_t since_ns);
  void examine(const Operation& operation);
  void too_late(const Operation& operation, int64_t waited_ns);
  std::string absentees(const Operation& operation) const;
  std::string outside() const;
  void give_up(const Operation& operation) noexcept;
  void caught(Operation& operation);
  [[noreturn]] void raise(const Failure& failure, const Call& doing);

  Transport& transport_;
  FailureBoard& failures_;
  RankPage& page_;
  const bool crowded_;
  Deadlines deadlines_;
  Operation* first_ = nullptr;  // those in flight, oldest first
  Operation* last_ = nullptr;
  uint64_t moves_ = 0;  // steps that operations made; a wait without any for too long is an error
  int64_t waited_ns_ = 0;
  std::string given_up_;
  std::map<uint64_t, uint32_t> opened_;  // groups by name and members: how many there were
  BetweenRanges while_computing_{[this] {
    if (first_) transport_.progress();
  }};
};

}  // namespace phalanx
