// All channels of a rank: who has which, what the GPU is waiting for, and how they end together. Not for
// others than nccl_transport.cc.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "phalanx/comm/engine.h"
#include "phalanx/comm/transport/nccl_channel.h"

namespace phalanx::nccl {

/// One rank's, for its thread.
class Channels {
 public:
  /// `host` outlives them.
  Channels(Transport& host, Device device, const Deadlines& deadlines);
  /// Waits a while for what is on its way; after a failure aborts it.
  ~Channels();
  Channels(const Channels&) = delete;
  Channels& operator=(const Channels&) = delete;

  /// The link of a group; its channels go with it.
  std::unique_ptr<GroupLink> open(const GroupInfo& group);
  /// The channel of all members of an open group.
  Channel& of_group(uint64_t group);
  /// Of this rank and another one of the world.
  Channel& of_pair(uint64_t group, int peer);

  /// Launches behind what the calling thread has queued on its GPU, and remembers that for taken().
  void add(Channel& channel, const std::shared_ptr<Launch>& launch);
  /// What the calling thread queues on its GPU from now on comes behind that operation.
  void taken(const Call& call);
  /// Moves all channels; true when something moved. What NCCL finds wrong fails the world, soon: if a rank
  /// has died, the lifeline may say so first.
  bool move();
  /// Something moves without anybody ringing.
  bool in_motion() const;
  /// While the host has waited for its GPU for so long, in no function of this class. CommError once the
  /// world has failed, as it does when the deadline has passed and the GPU is in an operation.
  void look(std::chrono::nanoseconds waited);

 private:
  class Link;
  struct OfGroup {
    Members members;  // all of the group's
    std::map<uint64_t, std::unique_ptr<Channel>> channels;
    std::vector<std::shared_ptr<Launch>> issued;  // of operations that are not taken
  };

  OfGroup& group(uint64_t id);
  Channel& channel(OfGroup& group, uint64_t number, const std::vector<int>& ranks);
  void close(uint64_t group) noexcept;
  std::vector<Channel*> all() const;
  void watch();
  void fail(const std::string& message) noexcept;
  std::string stuck();
  void abort_if_stuck(const std::stop_token& stop);
  void close_all();

  Transport& host_;
  const Device device_;
  const Deadlines deadlines_;
  std::map<uint64_t, OfGroup> groups_;
  std::vector<std::unique_ptr<Channel>> closing_;
  std::chrono::steady_clock::time_point wrong_since_{};
  mutable std::mutex mutex_;  // of the channels, between the rank's thread and the watcher
  std::jthread watcher_;
};

}  // namespace phalanx::nccl
