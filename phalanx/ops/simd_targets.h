// The instruction sets that kernels are compiled for; included before hwy/foreach_target.h.
#pragma once

// AVX-512, AVX2 and plain C++ on x86: whatever has SSE4 alone is too old to be worth its compile time. NEON
// on Arm: SVE's vectors cannot be members of a struct.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
