// Some damaged arguments; many are in argument_fuzz_full_test.cc.
#include "tests/ep/argument_fuzz.h"

#include <gtest/gtest.h>

namespace phalanx::ep {
namespace {

TEST(ArgumentFuzz, Buffer) { fuzz_buffer(300); }

TEST(ArgumentFuzz, LowLatency) { fuzz_low_latency(150); }

TEST(ArgumentFuzz, Makers) { fuzz_makers(200); }

}  // namespace
}  // namespace phalanx::ep
