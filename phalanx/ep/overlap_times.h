// What an expert layer gains when two microbatches take turns: one computes while the other's rows travel
// (dual-batch overlap: DeepSeek-V3 technical report, 2024, section 3.4).
#pragma once

#include "phalanx/base/trace.h"
#include "phalanx/ep/times.h"

namespace phalanx::ep {

struct OverlapOptions {
  TimesShape shape = {.tokens = 512, .width = 1024, .dtype = DType::f32};  ///< of one microbatch; f32 or f64
  int64_t expert_width = 256;
  int runs = 5;
};

/// The forward of an expert layer behind its router: "dispatch", "experts" and "combine" of one microbatch;
/// two of them "sequential" and "overlapped", which are equal to the bit, and what that hides. Only times.
/// The five take turns. Every member of `group` calls it, all with or without a ring, where one more round of
/// the last two leaves its spans: parts of those names, and in them the parts of microbatches 0 and 1.
std::vector<OperationTime> measure_overlap(Group& group, const OverlapOptions& options,
                                           TraceRing* ring = nullptr);

}  // namespace phalanx::ep
