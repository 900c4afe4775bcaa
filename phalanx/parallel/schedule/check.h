// What must hold of a schedule before any rank starts: every microbatch passes every stage forward and
// backward once, and the messages that the steps imply cannot wait for each other in a circle.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "phalanx/parallel/schedule/schedule.h"

namespace phalanx {

/// When the two sides of a message meet. A step waits for what it receives; what it sends must be taken
/// before the rank's next step begins. A send is taken once its receive has been posted, and receives of one
/// channel (activations or gradients into one chunk) are posted in the order of the steps that need them.
enum class Rendezvous : uint8_t {
  unbatched,     ///< before a step, first all sends of the one before, then the receives
  batched,       ///< those sends and receives together, as one batch
  posted_ahead,  ///< and each channel's next receive as soon as the one before was used: one buffer a
                 ///< channel, or of cut microbatches one for each slice
};

/// What is missing, twice or out of order in the lists, ranks and steps named; "" if they are complete: each
/// microbatch passes each chunk that it should forward and backward once, in this order; each I is followed
/// by its W, in the order of the I's of a chunk. Slices of one microbatch go forward in their order, and
/// backward in reverse.
std::string incompleteness(const Schedule& schedule);

/// Which ranks stop at which step, and what each waits for; "" if every step can run.
std::string deadlock(const Schedule& schedule, Rendezvous rendezvous = Rendezvous::posted_ahead);

/// The first of both, "" if the schedule is sound.
std::string check_schedule(const Schedule& schedule);

/// By rank, the most chunk activations held at once, each from its F until its B or I; of an overlapped pair
/// the forward comes first.
std::vector<int> peak_live(const Schedule& schedule);
/// The same until B or W: what weight gradients need is kept longer.
std::vector<int> peak_kept(const Schedule& schedule);

}  // namespace phalanx
