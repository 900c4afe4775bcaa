#include "phalanx/train/inspect.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "phalanx/base/units.h"
#include "phalanx/model/safetensors_model.h"
#include "phalanx/train/checkpoint_directory.h"
#include "phalanx/train/checksum.h"
#include "phalanx/train/saved_checkpoint.h"
#include "phalanx/train/trace_summary.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct PieceReport {
  std::string file;
  std::vector<int64_t> begin;
  std::vector<int64_t> end;
  uint64_t bytes = 0;
  std::vector<uint64_t> checksums;
  std::string status;
};

struct TensorReport {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  uint64_t bytes = 0;
  std::vector<PieceReport> pieces;

  uint64_t elements() const {
    uint64_t n = 1;
    for (const int64_t extent : shape) n *= static_cast<uint64_t>(extent);
    return n;
  }
  // Of its worst piece.
  std::string status() const {
    std::string worst = pieces.empty() ? "ok" : pieces.front().status;
    for (const PieceReport& p : pieces) {
      if (p.status == "damaged") worst = p.status;
    }
    return worst;
  }
};

struct Report {
  std::string kind;
  fs::path path;
  std::vector<std::pair<std::string, Json>> facts;  // by the JSON's names, in its order
  std::vector<std::pair<std::string, uint64_t>> files;
  std::vector<TensorReport> tensors;
  std::vector<std::string> problems;
};

std::vector<int64_t> list(const Shape& shape) { return {shape.extents().begin(), shape.extents().end()}; }

Json to_json(const TrainerState::Value& value) {
  if (const auto* d = std::get_if<double>(&value); d && !std::isfinite(*d)) return format("{}", *d);
  return std::visit([](const auto& v) { return Json(v); }, value);
}

PieceReport report_of(SavedCheckpoint& saved, const std::string& name, const SavedPiece& piece, bool verify,
                      std::vector<std::string>& problems) {
  PieceReport report{.file = piece.file,
                     .begin = list(piece.box.begin),
                     .end = list(piece.box.end),
                     .bytes = saved.manifest().tensors.at(name).piece_bytes(piece),
                     .checksums = piece.checksums,
                     .status = "not checked"};
  if (!verify) return report;
  try {
    saved.verify(name, piece);
    report.status = "ok";
  } catch (const DamagedCheckpoint& e) {
    report.status = "damaged";
    problems.emplace_back(e.what());
  }
  return report;
}

Report report_of(SavedCheckpoint& saved, bool verify) {
  const Manifest& m = saved.manifest();
  Report report{.kind = "checkpoint", .path = saved.path()};
  Json state = Json::object();
  for (const auto& [key, value] : m.state.values()) state[key] = to_json(value);
  report.facts = {
      {"step", m.step}, {"ranks", m.ranks}, {"layout", m.layout}, {"config", m.config}, {"state", state}};
  for (const auto& [name, file] : m.files) report.files.emplace_back(name, file.bytes);
  try {
    saved.check_files();
  } catch (const DamagedCheckpoint& e) {
    report.problems.emplace_back(e.what());
  }
  for (const auto& [name, tensor] : m.tensors) {
    TensorReport t{.name = name,
                   .dtype = std::string(safetensors_dtype(tensor.dtype)),
                   .shape = list(tensor.shape),
                   .bytes = static_cast<uint64_t>(tensor.shape.numel()) * dtype_size(tensor.dtype),
                   .pieces = {}};
    for (const SavedPiece& piece : tensor.pieces) {
      t.pieces.push_back(report_of(saved, name, piece, verify, report.problems));
    }
    report.tensors.push_back(std::move(t));
  }
  return report;
}

Report report_of(const SafetensorsModel& model) {
  Report report{.kind = "safetensors", .path = model.path()};
  Json metadata = Json::object();
  for (const SafetensorsFile& file : model.files()) {
    report.files.emplace_back(file.path().filename().string(), file.file_bytes());
    for (const auto& [key, text] : file.metadata()) metadata[key] = text;
  }
  report.facts = {{"metadata", metadata}};
  for (const auto& [name, entry] : model.tensors()) {
    const StoredTensor& stored = *entry.tensor;
    const PieceReport piece{.file = entry.file->path().filename().string(),
                            .begin = std::vector<int64_t>(stored.shape.size(), 0),
                            .end = stored.shape,
                            .bytes = stored.bytes(),
                            .checksums = {},
                            .status = "none"};
    report.tensors.push_back({.name = name,
                              .dtype = stored.dtype,
                              .shape = stored.shape,
                              .bytes = stored.bytes(),
                              .pieces = {piece}});
  }
  return report;
}

struct Totals {
  uint64_t elements = 0;
  uint64_t bytes = 0;
  uint64_t file_bytes = 0;
};

Totals totals_of(const Report& report) {
  Totals totals;
  for (const TensorReport& t : report.tensors) {
    totals.elements += t.elements();
    totals.bytes += t.bytes;
  }
  for (const auto& [name, bytes] : report.files) totals.file_bytes += bytes;
  return totals;
}

Json to_json(const TensorReport& tensor) {
  Json pieces = Json::array();
  for (const PieceReport& p : tensor.pieces) {
    Json checksums = Json::array();
    for (const uint64_t checksum : p.checksums) checksums.push_back(checksum_text(checksum));
    pieces.push_back({{"file", p.file},
                      {"begin", p.begin},
                      {"end", p.end},
                      {"bytes", p.bytes},
                      {"checksums", checksums},
                      {"status", p.status}});
  }
  return {{"name", tensor.name},
          {"dtype", tensor.dtype},
          {"shape", tensor.shape},
          {"bytes", tensor.bytes},
          {"pieces", pieces}};
}

Json to_json(const Report& report) {
  Json json = {{"kind", report.kind}, {"path", report.path.string()}};
  for (const auto& [key, value] : report.facts) json[key] = value;
  json["files"] = Json::array();
  for (const auto& [name, bytes] : report.files) json["files"].push_back({{"file", name}, {"bytes", bytes}});
  json["tensors"] = Json::array();
  for (const TensorReport& t : report.tensors) json["tensors"].push_back(to_json(t));
  const Totals totals = totals_of(report);
  json["totals"] = {{"tensors", report.tensors.size()},
                    {"elements", totals.elements},
                    {"bytes", totals.bytes},
                    {"file_bytes", totals.file_bytes}};
  json["problems"] = report.problems;
  return json;
}

std::string dump(const Json& json) { return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n"; }

// A name as a terminal may see it: control characters escaped.
std::string printable(const std::string& name) {
  const std::string quoted = Json(name).dump(-1, ' ', false, Json::error_handler_t::replace);
  return quoted.substr(1, quoted.size() - 2);
}

using Table = std::vector<std::vector<std::string>>;

// Columns two spaces apart; those whose heading ends with '>' to the right.
std::string aligned(Table table) {
  std::vector<size_t> widths(table.front().size(), 0);
  std::vector<bool> right(widths.size(), false);
  for (size_t c = 0; c < widths.size(); ++c) {
    right[c] = table.front()[c].ends_with('>');
    if (right[c]) table.front()[c].pop_back();
    for (const auto& row : table) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string text;
  for (const auto& row : table) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) {
      const std::string padding(widths[c] - row[c].size(), ' ');
      line += (c > 0 ? "  " : "") + (right[c] ? padding + row[c] : row[c] + padding);
    }
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

std::string files_of(const TensorReport& tensor) {
  if (tensor.pieces.empty()) return "";
  const std::string first = tensor.pieces.front().file;
  return tensor.pieces.size() == 1 ? first : format("{} and {} more", first, tensor.pieces.size() - 1);
}

// A value on its line; a long one (a vocabulary, say) by its beginning.
std::string brief(const Json& value) {
  constexpr size_t kLongest = 80;
  const std::string text = value.dump(-1, ' ', true);  // ASCII: may be cut anywhere
  if (text.size() <= kLongest) return text;
  return format("{}… ({} in all)", text.substr(0, kLongest), human_bytes(text.size()));
}

std::string to_text(const Report& report) {
  std::string text = format("{} {}\n", report.kind, report.path.string());
  for (const auto& [key, value] : report.facts) {
    if (value.is_object()) {
      for (const auto& [name, entry] : value.items())
        text += format("  {} {}: {}\n", key, name, brief(entry));
    } else if (key != "config") {
      text += format("  {}: {}\n", key, value.is_string() ? value.get<std::string>() : value.dump());
    }
  }
  const bool checks = report.kind == "checkpoint";
  Table table = {{"tensor", "dtype", "shape", "bytes>", "file"}};
  if (checks) table.front().emplace_back("checksum");
  for (const TensorReport& t : report.tensors) {
    table.push_back({printable(t.name), printable(t.dtype), format("{}", std::span(t.shape)),
                     grouped(t.bytes), files_of(t)});
    if (checks) table.back().push_back(t.status());
  }
  const Totals totals = totals_of(report);
  text += "\n" + aligned(std::move(table));
  text += format("\n{} tensors, {} elements, {} in {} files of {}\n", report.tensors.size(),
                 grouped(totals.elements), human_bytes(totals.bytes), report.files.size(),
                 human_bytes(totals.file_bytes));
  for (const std::string& problem : report.problems) text += format("problem: {}\n", problem);
  return text;
}

Inspection rendered(const Report& report, const InspectOptions& options) {
  return {.text = options.json ? dump(to_json(report)) : to_text(report), .problems = report.problems};
}

// A run's directory: which checkpoints there are, then the one to go on from.
Inspection inspect_run(const fs::path& dir, const std::vector<CheckpointEntry>& all,
                       const InspectOptions& options) {
  const std::optional<LatestCheckpoint> latest = find_latest_complete(dir);
  const std::string note = latest ? latest->note : "no checkpoint is complete";
  Inspection out;
  if (!note.empty()) out.problems.push_back(note);
  for (const CheckpointEntry& c : all) {
    if (!c.fault.empty() && c.fault != note) out.problems.push_back(c.fault);
  }
  std::optional<Report> report;
  if (latest) {
    SavedCheckpoint saved(latest->path);
    report = report_of(saved, options.verify);
    std::ranges::copy(report->problems, std::back_inserter(out.problems));
  }
  if (options.json) {
    Json json = {{"kind", "run"}, {"path", dir.string()}, {"note", note}, {"checkpoints", Json::array()}};
    for (const CheckpointEntry& c : all) {
      json["checkpoints"].push_back(
          {{"path", c.path.string()}, {"step", c.step}, {"complete", c.fault.empty()}, {"fault", c.fault}});
    }
    json["latest"] = report ? to_json(*report) : Json();
    out.text = dump(json);
    return out;
  }
  Table table = {{"checkpoint", "state", ""}};
  for (const CheckpointEntry& c : all) {
    const bool goes_on = latest && latest->path == c.path;
    table.push_back({c.path.filename().string(), c.fault.empty() ? "complete" : "incomplete",
                     goes_on ? "<- the one to go on from" : c.fault});
  }
  out.text = format("run {}\n\n", dir.string()) + aligned(std::move(table));
  if (!note.empty()) out.text += format("problem: {}\n", note);
  if (report) out.text += "\n" + to_text(*report);
  return out;
}

}  // namespace

Inspection inspect(const fs::path& given, const InspectOptions& options) {
  fs::path path = given.lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  if (!fs::exists(path)) throw Error("{}: no such file or directory", path.string());
  if (path.filename() == "manifest.json") path = path.has_parent_path() ? path.parent_path() : fs::path(".");
  if (is_trace(path)) return {.text = trace_summary(path, options.json), .problems = {}};
  if (!fs::is_directory(path)) return rendered(report_of(SafetensorsModel::open(path)), options);

  if (fs::exists(path / "manifest.json") || path.filename().string().starts_with("step-")) {
    try {
      SavedCheckpoint saved(path);
      return rendered(report_of(saved, options.verify), options);
    } catch (const DamagedCheckpoint& e) {
      throw Error("{}; {}", e.what(), advice_instead_of(path));
    }
  }
  const std::vector<CheckpointEntry> all = list_checkpoints(path);
  if (!all.empty()) return inspect_run(path, all, options);
  if (fs::exists(path / "model.safetensors") || fs::exists(path / "model.safetensors.index.json")) {
    return rendered(report_of(SafetensorsModel::open(path)), options);
  }
  throw Error("{}: neither a checkpoint, nor a run's checkpoints, nor model.safetensors is there",
              path.string());
}

}  // namespace phalanx
