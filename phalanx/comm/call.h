// A group as its transport sees it, and one call of an operation.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "phalanx/comm/exchange.h"

namespace phalanx {

/// What a transport keeps for one group on one rank.
class GroupLink {
 public:
  virtual ~GroupLink() = default;
};

/// Operations and bytes that went to and came from other ranks.
struct Traffic {
  int64_t calls = 0;
  int64_t sent = 0;
  int64_t received = 0;

  Traffic& operator+=(const Traffic& other) {
    calls += other.calls;
    sent += other.sent;
    received += other.received;
    return *this;
  }
  friend bool operator==(const Traffic&, const Traffic&) = default;
};

/// The ranks of a group as one of them sees it.
struct GroupInfo {
  std::string name;
  uint64_t id = 0;            ///< equal on all members, different for every group of a world
  std::vector<int> members;   ///< world ranks, by group rank
  int rank = 0;               ///< this rank's place among them
  int recorder_slot = -1;     ///< of the rank's flight recorder
  std::vector<bool> excused;  ///< members whose absence is no error; empty: none are
  std::unique_ptr<GroupLink> link;
  std::array<Traffic, Fingerprint::kKinds> traffic{};  ///< by kind
  int size() const { return static_cast<int>(members.size()); }
  bool is_excused(size_t member) const { return !excused.empty() && excused[member]; }
};

/// One call of an operation on one rank: its group, its place in the group's order, and its exchanges.
class Call {
 public:
  Call(Transport& transport, GroupInfo& group, uint64_t sequence, const Fingerprint& fingerprint)
      : transport_(&transport), group_(&group), sequence_(sequence), fingerprint_(fingerprint) {}

  Transport& transport() const { return *transport_; }
  const GroupInfo& group() const { return *group_; }
  int rank() const { return group_->rank; }
  int size() const { return group_->size(); }
  uint64_t sequence() const { return sequence_; }
  const Fingerprint& fingerprint() const { return fingerprint_; }
  /// "all_reduce(f32[8], sum) #41 of group dp".
  std::string text() const;

  /// The next exchange of this call; peers are group ranks. Every member makes the same number of exchanges.
  Exchange exchange(PooledVector<P2P> messages);
  /// Adds bytes to the group's counters; exchange does so by itself.
  void count(int64_t sent, int64_t received) const;

 private:
  Transport* transport_;
  GroupInfo* group_;
  uint64_t sequence_;
  Fingerprint fingerprint_;
  uint64_t step_ = 0;
};

}  // namespace phalanx
