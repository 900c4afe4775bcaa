// One NCCL communicator on one rank: how it begins, what it does in which order, and how it ends. Not for
// others than nccl_transport.cc.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "phalanx/comm/transport/transport.h"
#include "phalanx/tensor/stream.h"

struct ncclComm;

namespace phalanx::nccl {

/// Who talks over a channel.
struct Members {
  uint64_t group = 0;      ///< its id
  std::string group_name;  ///< for messages
  uint64_t number = 0;     ///< of the channel among the group's; equal on all members
  std::vector<int> ranks;  ///< of the world, ascending
  int rank = 0;            ///< this rank's place among them
};

/// What a rank asks of a channel: the NCCL calls of one operation, or of its messages with one peer.
struct Launch {
  enum class State : uint8_t { waiting, begun, queued };

  uint64_t sequence = 0;  ///< of the operation in its group
  Fingerprint fingerprint;
  /// Makes the calls, in order, as one group of NCCL's.
  std::function<void(ncclComm*, CUstream_st*)> calls;
  std::vector<Tensor> tensors;  ///< that they refer to, until the results are taken
  Event ready;                  ///< behind it the work may begin
  State state = State::waiting;
  Event done;  ///< once queued: its end
};

/// Throws CommError, naming the call, unless NCCL's code is success or says that it is in progress.
void check_nccl(int code, const char* call);

/// Launches run in the order in which they were added. No function waits.
class Channel {
 public:
  /// `host` outlives the channel and carries the communicator's name from the first member to the others.
  Channel(Transport& host, Members members, Device device);
  /// Aborts what is not closed.
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  const Members& members() const { return members_; }
  void add(std::shared_ptr<Launch> launch);
  /// Begins the communicator, launches; true when something moved.
  bool move();
  /// Something moves without anybody ringing.
  bool in_motion() const { return !waiting_.empty() || state_ == State::closing; }
  /// What NCCL has found wrong so far, or "".
  const std::string& error();
  /// The first launch that its GPU has not finished, or null.
  const Launch* first_unfinished();
  /// The GPU is at work, or waits for others.
  bool running();
  /// "all_reduce(f32[8], sum) #41 of group dp".
  std::string text(const Launch& launch) const;

  /// To be called until it is true: no launch is left, here or on its way to others. `free`: gives the
  /// communicator's memory back; at the end of a process that would run on beside the end.
  bool close(bool free);
  /// Ends what is on its way, soon. Nothing moves any more.
  void abort() noexcept;

 private:
  enum class State : uint8_t { unused, meeting, beginning, ready, closing, closed };

  bool begin();
  bool meet();
  bool in_progress();
  void fail(const std::string& what);

  Transport& host_;
  const Members members_;
  const Device device_;
  State state_ = State::unused;
  Tensor name_;  // u8 [128]: ncclUniqueId
  std::optional<Exchange> meeting_;
  ncclComm* communicator_ = nullptr;
  std::optional<Stream> stream_;
  std::deque<std::shared_ptr<Launch>> waiting_;     // the first one may have begun
  std::deque<std::shared_ptr<Launch>> unfinished_;  // queued, and perhaps still running
  std::string error_;
};

}  // namespace phalanx::nccl
