// Promises that only a kernel can check, because the values lie on the device.
#pragma once

namespace phalanx::cuda {

enum class FaultKind : int { none, token, target, live_rows, position, expert, same_number, offset };

/// The first broken promise that kernels of one stream found; in device memory, read when the host
/// synchronises. Kernels skip what they cannot do and go on.
struct Fault {
  FaultKind kind = FaultKind::none;
  int unused = 0;
  long long value = 0;  // what was found
  long long limit = 0;  // what it should have been below (live_rows, offset: at most)
};

/// Throws BrokenPromise if there is a fault.
void check_fault(const Fault& fault);

}  // namespace phalanx::cuda
