// A few random cases; many are in random_cases_full_test.cc.
#include <gtest/gtest.h>

#include "tests/ep/random_cases.h"

namespace phalanx::ep {
namespace {

TEST(RandomCases, Directly) { check_cases(480, 15, on_threads(directly())); }

TEST(RandomCases, OnProcesses) { check_cases(160, 10, on_processes()); }

TEST(RandomCases, ByMessages) { check_cases(160, 10, on_threads(by_messages())); }

}  // namespace
}  // namespace phalanx::ep
