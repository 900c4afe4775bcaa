// Many random cases of dispatch and combine.
#include <gtest/gtest.h>

#include "tests/ep/random_cases.h"

namespace phalanx::ep {
namespace {

TEST(RandomCasesFull, Directly) { check_cases(10'000, 50, on_threads(directly())); }

TEST(RandomCasesFull, OnProcesses) { check_cases(2'000, 20, on_processes()); }

TEST(RandomCasesFull, ByMessages) { check_cases(2'000, 20, on_threads(by_messages())); }

}  // namespace
}  // namespace phalanx::ep
