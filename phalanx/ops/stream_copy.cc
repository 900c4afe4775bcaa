#include "phalanx/ops/stream_copy.h"

#include <cstdint>

#include "phalanx/base/check.h"
#include "phalanx/ops/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "phalanx/ops/stream_copy.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace phalanx::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

void copy_kernel(uint8_t* to, const uint8_t* from, size_t bytes) {
  const hn::ScalableTag<uint8_t> d;
  for (size_t i = 0; i < bytes; i += hn::Lanes(d)) hn::Stream(hn::LoadU(d, from + i), d, to + i);
}

}  // namespace
}  // namespace phalanx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace phalanx {
namespace {
HWY_EXPORT(copy_kernel);
}  // namespace

void stream_copy(void* to, const void* from, size_t bytes) {
  PHX_CHECK(can_stream(to, bytes), "{} bytes to an address that is {} beyond a multiple of 64", bytes,
            reinterpret_cast<size_t>(to) % 64);
  HWY_DYNAMIC_DISPATCH(copy_kernel)(static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), bytes);
}

void stream_fence() { hwy::FlushStream(); }

}  // namespace phalanx
#endif
