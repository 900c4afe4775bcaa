// Every collective against what the sum, maximum, … of known inputs must be. Every rank knows all inputs, and
// they are small integers, so that results are exact in every dtype and order.
#pragma once

#include <cstdint>
#include <random>

#include "phalanx/comm/group.h"

namespace phalanx {

/// Which inputs: dtype, elements of each rank's tensor (rows, where the collective cuts them), seed.
struct CollectiveCase {
  DType dtype = DType::f32;
  int64_t n = 0;
  uint64_t seed = 0;
};

// Each throws Error at the first element that is wrong.
void check_all_reduce(Group& group, const CollectiveCase& c, Reduce reduce);
void check_reduce_scatter(Group& group, const CollectiveCase& c, Reduce reduce);
void check_all_gather(Group& group, const CollectiveCase& c);
/// Uneven: each rank sends 0 … n rows of 3 elements to each.
void check_all_to_all(Group& group, const CollectiveCase& c);
/// From every root.
void check_broadcast(Group& group, const CollectiveCase& c);
/// To both neighbours in a ring, two messages each, of different sizes.
void check_exchange(Group& group, const CollectiveCase& c);
/// Nobody leaves a barrier before all have come.
void check_barrier(Group& group);
/// Tensors of n, n + 1, … rows, slices of larger ones: all ranks write into all of them, each byte by one
/// rank, and then all read them.
void check_share(Group& group, const CollectiveCase& c);

/// All of the above but check_share, and that too where ranks share memory; every reduction where `dtype` can
/// be reduced.
void check_collectives(Group& group, const CollectiveCase& c);

/// The element `i` of what `rank` brings: an integer in [−8, 8]. `salt` tells tensors apart.
double input_value(const CollectiveCase& c, uint64_t salt, int rank, int64_t i);
/// That tensor, of the given shape.
Tensor input_tensor(const CollectiveCase& c, uint64_t salt, int rank, const Shape& shape);
/// Elements as doubles.
double element(const Tensor& x, int64_t i);

}  // namespace phalanx
