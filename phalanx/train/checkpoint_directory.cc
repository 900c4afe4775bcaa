#include "phalanx/train/checkpoint_directory.h"

#include <algorithm>
#include <charconv>
#include <system_error>
#include <tuple>

#include "phalanx/base/file.h"
#include "phalanx/train/checksum.h"
#include "phalanx/train/saved_checkpoint.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kReplaced = ".replaced";
constexpr std::string_view kWriting = ".writing-";
constexpr std::string_view kRemoving = ".removing-";
constexpr const char* kPointer = "latest";
constexpr const char* kPointerWriting = ".writing-latest";

// The step in "step-00000400" or "step-00000400.replaced".
std::optional<int64_t> step_of(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  if (name.ends_with(kReplaced)) name.remove_suffix(kReplaced.size());
  int64_t step = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  if (error != std::errc() || end != name.data() + name.size() || step < 0) return std::nullopt;
  return step;
}

std::string fault_of(const fs::path& path) {
  try {
    SavedCheckpoint(path).check_files();
    return "";
  } catch (const std::exception& e) {
    return e.what();
  }
}

std::string pointer_text(const std::string& name) {
  return format("{} xxh3-64:{}\n", name, checksum_text(xxh3(name)));
}

// The name that `latest` holds. Error: unreadable, damaged.
std::string read_pointer(const fs::path& dir) {
  const std::string text = read_text(dir / kPointer, 4096);
  std::string name = text.substr(0, text.find(' '));
  if (text != pointer_text(name) || !step_of(name)) {
    throw Error("{}: it is damaged", (dir / kPointer).string());
  }
  return name;
}

void make_directories(const fs::path& dir) {
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) throw Error("cannot create directory {}: {}", dir.string(), error.message());
}

// First under another name, so that a checkpoint never is half there. False: it could not be.
bool remove_checkpoint(const fs::path& path) {
  const fs::path away = path.parent_path() / (std::string(kRemoving) + path.filename().string());
  std::error_code error;
  fs::remove_all(away, error);
  fs::rename(path, away, error);
  if (!error) fs::remove_all(away, error);
  return !error;
}

}  // namespace

std::string checkpoint_name(int64_t step) { return format("{}{:08d}", kPrefix, step); }

std::vector<CheckpointEntry> list_checkpoints(const fs::path& dir) {
  std::vector<CheckpointEntry> found;
  std::error_code error;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    const auto step = step_of(it->path().filename().string());
    if (step) found.push_back({.path = it->path(), .step = *step, .fault = fault_of(it->path())});
  }
  std::ranges::sort(found, [](const CheckpointEntry& a, const CheckpointEntry& b) {
    const bool a_is_newer = !a.path.native().ends_with(kReplaced);
    const bool b_is_newer = !b.path.native().ends_with(kReplaced);
    return std::tie(a.step, a_is_newer) < std::tie(b.step, b_is_newer);
  });
  return found;
}

std::optional<LatestCheckpoint> find_latest_complete(const fs::path& dir) {
  std::string note;
  try {
    const fs::path named = dir / read_pointer(dir);
    note = fault_of(named);
    if (note.empty()) return LatestCheckpoint{named, ""};
  } catch (const Error& e) {
    note = e.what();
  }
  const std::vector<CheckpointEntry> all = list_checkpoints(dir);
  const auto last =
      std::find_if(all.rbegin(), all.rend(), [](const CheckpointEntry& c) { return c.fault.empty(); });
  if (last == all.rend()) return std::nullopt;
  return LatestCheckpoint{last->path, std::move(note)};
}

std::string advice_instead_of(const fs::path& damaged) {
  const std::optional<int64_t> step = step_of(damaged.filename().string());
  const fs::path dir = damaged.has_parent_path() ? damaged.parent_path() : fs::path(".");
  const std::vector<CheckpointEntry> all = list_checkpoints(dir);
  const CheckpointEntry* best = nullptr;
  for (const CheckpointEntry& c :
       all) {  // ascending: the last one before the damaged, else the first after it
    if (!c.fault.empty() || c.path.filename() == damaged.filename()) continue;
    if (!best || !step || c.step <= *step) best = &c;
  }
  if (!best) return format("no other checkpoint in {} is complete", dir.string());
  return format("{} is complete: use {}", best->path.filename().string(), best->path.string());
}

LatestCheckpoint resolve_checkpoint(fs::path path) {
  path = path.lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  if (path.filename() == "manifest.json" || path.filename() == "latest") path = path.parent_path();
  if (fs::exists(path / "manifest.json")) return {.path = path, .note = ""};
  if (path.filename().string().starts_with("step-")) {
    throw DamagedCheckpoint(format("{} is missing: {} is not a complete checkpoint; {}",
                                   (path / "manifest.json").string(), path.filename().string(),
                                   advice_instead_of(path)));
  }
  if (!fs::is_directory(path))
    throw Error("{}: no such checkpoint or directory of checkpoints", path.string());
  auto latest = find_latest_complete(path);
  if (latest) return *std::move(latest);
  std::string faults;
  for (const CheckpointEntry& c : list_checkpoints(path)) faults += "; " + c.fault;
  throw Error("{}: there is no complete checkpoint{}", path.string(), faults);
}

CheckpointInProgress::CheckpointInProgress(fs::path dir, int64_t step)
    : dir_(std::move(dir)), name_(checkpoint_name(step)), writing_(dir_ / (std::string(kWriting) + name_)) {}

void prepare_directory(const fs::path& dir) {
  try {
    make_directories(dir);
    const fs::path probe = dir / (std::string(kWriting) + "probe");
    std::error_code ignored;
    fs::remove_all(probe, ignored);
    make_directory(probe);
    fs::remove(probe, ignored);
  } catch (const Error& e) {
    throw Error("train.out: checkpoints cannot be saved in {}: {}", dir.string(), e.what());
  }
}

void CheckpointInProgress::begin() const {
  make_directories(dir_);
  std::error_code error;
  std::vector<fs::path> left_over;
  for (fs::directory_iterator it(dir_, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with(kWriting) || name.starts_with(kRemoving)) left_over.push_back(it->path());
    const bool replaced = name.starts_with(kPrefix) && name.ends_with(kReplaced);
    if (replaced && fault_of(dir_ / name.substr(0, name.size() - kReplaced.size())).empty()) {
      left_over.push_back(it->path());
    }
  }
  for (const fs::path& path : left_over) fs::remove_all(path, error);
  make_directory(writing_);
}

void CheckpointInProgress::publish(std::string_view manifest) const {
  write_new_file(writing_ / "manifest.json", manifest);
  sync_directory(writing_);
  write_new_file(dir_ / kPointerWriting,
                 pointer_text(name_));  // a full disk is found before anything changes

  const fs::path replaced = dir_ / (name_ + std::string(kReplaced));
  if (fs::exists(final_path())) {
    // One that was put aside is still here only if what took its place is damaged.
    if (fs::exists(replaced)) {
      remove_checkpoint(final_path());
    } else {
      rename_path(final_path(), replaced);
    }
  }
  rename_path(writing_, final_path());
  sync_directory(dir_);
  rename_path(dir_ / kPointerWriting, dir_ / kPointer);
  sync_directory(dir_);
  if (fs::exists(replaced)) remove_checkpoint(replaced);
}

void CheckpointInProgress::discard() const noexcept {
  std::error_code ignored;
  fs::remove_all(writing_, ignored);
  fs::remove(dir_ / kPointerWriting, ignored);
}

std::string prune_checkpoints(const fs::path& dir, int64_t step, int keep) {
  if (keep <= 0) return "";
  std::vector<CheckpointEntry> all = list_checkpoints(dir);
  std::erase_if(all, [step](const CheckpointEntry& c) { return c.step >= step; });
  int complete = 1;  // the one of `step`
  std::string left;
  for (auto c = all.rbegin(); c != all.rend(); ++c) {
    if (complete < keep) {
      complete += c->fault.empty() ? 1 : 0;
    } else if (!remove_checkpoint(c->path)) {
      left += format("{}{}", left.empty() ? "" : ", ", c->path.string());
    }
  }
  return left;
}

}  // namespace phalanx
