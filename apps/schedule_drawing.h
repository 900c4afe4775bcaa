// Timelines of pipeline schedules, as text and as a picture.
#pragma once

#include <string>

#include "phalanx/parallel/schedule/simulate.h"

namespace phalanx {

/// One line a rank, steps where they run, dots where the rank is idle. One line that says so if it would be
/// too wide.
std::string timeline_text(const Schedule& schedule, const Timeline& timeline);

/// A whole SVG file, well-formed XML without scripts or anything from elsewhere: one row a rank, each step
/// with its times under the pointer, idle time hatched.
std::string timeline_svg(const Schedule& schedule, const Timeline& timeline);

}  // namespace phalanx
