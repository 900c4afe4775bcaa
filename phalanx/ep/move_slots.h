// What slots hold, from one placement to another.
#pragma once

#include "phalanx/comm/group.h"
#include "phalanx/ep/replica_map.h"

namespace phalanx::ep {

/// Each tensor [local slots, …] under `from` → the same under `to`: bit for bit what a slot of the same
/// expert held. A slot whose expert the rank had keeps that; the others are sent by a rank that has it, the
/// sends of one expert spread over its replicas in turn. The maps have the same slots and experts; all ranks
/// call it. Bytes that a rank sends: those of the slots that others get from it.
Task<PooledVector<Tensor>> move_slots(Group& group, PooledVector<Tensor> own, ReplicaMap from, ReplicaMap to);

/// Slots that move_slots fills from another rank.
int64_t slots_moved(const ReplicaMap& from, const ReplicaMap& to);

}  // namespace phalanx::ep
