// Many damaged arguments.
#include <gtest/gtest.h>

#include "tests/ep/argument_fuzz.h"

namespace phalanx::ep {
namespace {

TEST(ArgumentFuzzFull, Buffer) { fuzz_buffer(10'000); }

TEST(ArgumentFuzzFull, LowLatency) { fuzz_low_latency(4'000); }

TEST(ArgumentFuzzFull, Makers) { fuzz_makers(10'000); }

}  // namespace
}  // namespace phalanx::ep
