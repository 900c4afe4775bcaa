// Ranks as processes whose tensors may lie on GPUs, one rank a GPU: over the transport that has joined the
// processes, messages and collectives of tensors on GPUs go by NCCL. Tensors on the CPU, the failure board,
// pages and the lifeline stay with the host's transport.
//
// A group's communicator begins with the first operation that needs it; messages of an exchange have one for
// each pair of ranks, since other members need not know of them. Each has a stream of its own: what an
// operation does there starts behind what its rank had queued when it issued it, and what the rank queues
// after the await comes behind the operation. No host waits for a GPU, but for the launch, which a thread of
// NCCL's does.
//
// Order of sums: NCCL's, along its rings and trees, in the tensor's own dtype at every step. The same bits on
// all ranks, and in every run on the same machines, but not those of other transports, which sum in rank
// order and round bf16 and f16 once. Under max and min a NaN may be lost.
//
// Failures: whoever waits, in the engine or for its GPU, looks at NCCL's errors and at the failure board, and
// ends at the deadline of progress. What is on its way is aborted when a rank's transport ends after a
// failure, or two seconds after the failure, so that a host which is stuck in a full queue gets on.
#pragma once

#include <memory>

#include "phalanx/comm/engine.h"
#include "phalanx/tensor/device.h"

namespace phalanx {

/// `host` joins processes (process.h, mpi.h) and keeps nothing for groups; all tensors on GPUs are on
/// `device`. Made, used and destroyed on the rank's thread.
std::unique_ptr<Transport> nccl_transport(std::unique_ptr<Transport> host, Device device,
                                          const Deadlines& deadlines);

/// The same as a wrapper: on the GPU that is the rank's by its place on its host. Starts CUDA. Error: this
/// build or machine has none.
WrapTransport over_nccl(const Deadlines& deadlines);

}  // namespace phalanx
