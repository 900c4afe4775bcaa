// What the ranks of a trace (step_trace.h) did with their time.
#pragma once

#include <filesystem>
#include <string>

namespace phalanx {

/// The file begins as a trace does.
bool is_trace(const std::filesystem::path& path);

/// By rank: the seconds of its traced steps, each in the innermost span that has a phase (phase_name; `wait`
/// is time in which it did nothing else, "other" what has none); operations in flight and the bytes they sent
/// and received; and its bubble: of each step, from the first pipeline step of any rank to the end of the
/// last one, less its own. A table, or as JSON {"kind": "trace", "path", "steps": ["step 2", …], "ranks":
/// [{"rank", "name", "seconds", "parts": {phase: seconds}, "bubble", "operations", "sent", "received"}]}.
/// Error: it is no trace of Phalanx.
std::string trace_summary(const std::filesystem::path& path, bool json);

}  // namespace phalanx
