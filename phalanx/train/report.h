// A training run as one page: loss, expert load, time by phase, as inline SVG.
#pragma once

#include <string>

#include "phalanx/train/history.h"

namespace phalanx {

/// One HTML file that needs nothing else: no network, no script (one only reads values off under the
/// pointer). Any history will do, also one without steps or with values that are not finite. Its size does
/// not grow with the number of steps: below 300 KB, plus the sample and the config.
std::string report_html(const TrainingHistory& history);

/// Writes it to `path`, over what was there. Error, which names the path and the cause: it cannot be written.
void write_report(const std::string& path, const TrainingHistory& history);

}  // namespace phalanx
