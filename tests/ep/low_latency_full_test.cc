// Many random worlds of the low-latency mode.
#include <gtest/gtest.h>

#include "tests/ep/low_latency_cases.h"
#include "tests/ep/random_cases.h"

namespace phalanx::ep {
namespace {

TEST(LowLatencyFull, Directly) { check_low_latency(4000, directly()); }

TEST(LowLatencyFull, ByMessages) { check_low_latency(1000, by_messages()); }

}  // namespace
}  // namespace phalanx::ep
