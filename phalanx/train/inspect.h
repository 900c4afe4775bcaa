// What `phalanx inspect` prints about checkpoints, safetensors files and traces.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace phalanx {

struct InspectOptions {
  bool json = false;  ///< for machines, instead of a table
  bool verify =
      false;  ///< read everything and compare the checksums (checkpoints; safetensors files have none)
};

/// What was found. The command ends with status 1 when there are problems.
struct Inspection {
  std::string text;                   // ends with a newline
  std::vector<std::string> problems;  // a sentence each, naming file and tensor; also in the JSON
};

/// `path` is a run's directory of checkpoints (its list, then the one to go on from), a checkpoint, its
/// manifest.json, a .safetensors file, an index of several, a directory with one of those, or a trace
/// (trace_summary.h). JSON: {"kind":
/// "checkpoint|safetensors", "path", "step", "ranks", "layout", "config", "state", "metadata", "files":
/// [{"file", "bytes"}], "tensors": [{"name", "dtype", "shape", "bytes", "pieces": [{"file", "begin", "end",
/// "bytes", "checksums", "status": "ok|damaged|not checked|none"}]}], "totals": {"tensors", "elements",
/// "bytes", "file_bytes"}, "problems"}, and for a run {"kind": "run", "path", "note", "checkpoints":
/// [{"path", "step", "complete", "fault"}], "latest": the object of that one, or null}. Error: nothing of the
/// kind is there, or its header or manifest cannot be read.
Inspection inspect(const std::filesystem::path& path, const InspectOptions& options = {});

}  // namespace phalanx
