// A GPU that fails, for tests.
#pragma once

namespace phalanx::test {

/// Queues a kernel that fails on the calling thread's stream. The process cannot use its GPUs afterwards.
void queue_trap();

}  // namespace phalanx::test
