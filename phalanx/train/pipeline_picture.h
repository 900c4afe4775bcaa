// A pipeline's step on the report's page: what each rank did when, and its bubbles.
#pragma once

#include <optional>
#include <string>

#include "phalanx/train/pipeline_history.h"

namespace phalanx {

/// A figure with a row for each rank, F, B, I, W and overlapped pairs as blocks with their microbatch,
/// bubbles shaded; and a table: the bubble as measured, as simulated and by formula. Of a run without
/// pipeline "". Well-formed XML.
std::string pipeline_section(const std::optional<PipelineRecord>& record);

}  // namespace phalanx
