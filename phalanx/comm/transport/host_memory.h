// Ranks that are processes of one host, in each other's memory: `share` between them.
//
// Every rank's tensors lie in a file of memory (tensor/memory_file.h). Ranks tell each other its address when
// they meet, and each says whose it could open. `share` sends where a tensor lies; whoever hears it maps that
// region, once, and gets a tensor over it. The tensor's block counts such users beside its own, and is not
// used again before they are done: not even when its owner has given the operation up. Of a rank that dies
// the users stay, and the block with them until its owner ends: that world has failed.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "phalanx/comm/lifeline/lifeline.h"
#include "phalanx/comm/transport/transport.h"
#include "phalanx/tensor/memory_file.h"

namespace phalanx {

class PeerMemory;

/// One rank's, used by its thread alone. It is also the scope of that rank's allocator, and outlives its
/// transport.
class HostMemory {
 public:
  HostMemory(int rank, int ranks);
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  /// Every rank gives a text; gives all of them, by rank, as Lifeline::share does. Then all ranks know who
  /// reaches whom, and this one's allocator begins.
  std::vector<std::string> meet(Lifeline& lifeline, const std::string& text);

  /// True when each member reaches each other's memory: the same on all ranks.
  bool shared(const GroupInfo& group) const;
  /// x, or a copy of it if x does not lie in this rank's file.
  Tensor shareable(const GroupInfo& group, Tensor x) const;
  /// Transport's, by a message of 80 bytes to each other member that no counter counts. The other ranks'
  /// tensors may be kept as long as any other, also when their owner is gone.
  Task<> share(Call call, Tensor x, std::span<Tensor> peers);

 private:
  struct Place;
  struct Release {
    void operator()(PeerMemory* peer) const noexcept;
  };

  bool own(const Tensor& x) const;
  Place lend(const Tensor& x, int users) const;

  int rank_;
  std::unique_ptr<MemoryFile> file_;  // until the allocator has it
  const MemoryFile* of_allocator_ = nullptr;
  std::vector<std::unique_ptr<PeerMemory, Release>> peers_;  // by world rank; null: not reached
  std::vector<std::vector<bool>> reaches_;                   // reaches_[a][b]: rank a has rank b's memory
  std::unique_ptr<AllocatorScope> scope_;
  Allocator* allocator_ = nullptr;
};

}  // namespace phalanx
