// Random worlds of the low-latency mode, against a slow account of every row and sum, bit for bit.
#pragma once

#include "phalanx/comm/group.h"

namespace phalanx::ep {

/// On the ranks of `world`, which all draw the same case from `seed`: uneven experts, ranks without any or
/// without tokens, K up to 16, slots that name none or the same expert twice, four dtypes; several dispatches
/// and combines, up to two live, whose hooks each rank calls when it likes. Throws what does not hold.
void check_low_latency(Group& world, unsigned seed);

}  // namespace phalanx::ep
