#include "phalanx/parallel/schedule/schedule.h"

#include <array>

#include "phalanx/base/error.h"
#include "phalanx/base/nearest.h"
#include "phalanx/parallel/schedule/entries.h"

namespace phalanx {
namespace {

constexpr std::array<const ScheduleEntry*, 9> kEntries = {
    &kSequential, &kOverlapped, &kGpipe, &k1f1b, &kInterleaved, &kZbH1, &kZbV, &kDualPipe, &kDualPipeV,
};
constexpr int64_t kMostSteps = 3'000'000;

ScheduleShape completed(const ScheduleEntry& entry, ScheduleShape shape) {
  if (shape.ranks < 1) throw Error("schedule {}: {} stages; at least 1", entry.name, shape.ranks);
  if (shape.microbatches < 1) {
    throw Error("schedule {}: {} microbatches; at least 1", entry.name, shape.microbatches);
  }
  if (shape.chunks < 0) throw Error("schedule {}: {} chunks; at least 1", entry.name, shape.chunks);
  if (shape.chunks == 0) shape.chunks = entry.chunks;
  if (shape.chunks != entry.chunks && !entry.any_chunks) {
    throw Error("schedule {} has {} {} a rank, not {}; interleaved takes any number", entry.name,
                entry.chunks, entry.chunks == 1 ? "chunk" : "chunks", shape.chunks);
  }
  if (shape.slices < 1) throw Error("schedule {}: {} slices; at least 1", entry.name, shape.slices);
  const double steps = 3.0 * shape.ranks * shape.microbatches * shape.chunks * shape.slices;
  if (steps > kMostSteps) {
    throw Error("schedule {}: {} stages x {} microbatches x {} chunks{} are more than {} steps", entry.name,
                shape.ranks, shape.microbatches, shape.chunks,
                shape.slices > 1 ? format(" x {} slices", shape.slices) : "", kMostSteps);
  }
  if (entry.require != nullptr) entry.require(shape);
  return shape;
}

ScheduleShape shape_of(const Schedule& s) {
  return {s.ranks, s.microbatches / s.slices, s.chunks_per_rank, s.slices};
}

}  // namespace

int Schedule::stages() const {
  return map == StageMap::straight || map == StageMap::both_ways ? ranks : ranks * chunks_per_rank;
}

int Schedule::stage(int rank, int chunk) const {
  switch (map) {
    case StageMap::straight:
      break;
    case StageMap::looped:
      return chunk * ranks + rank;
    case StageMap::vee:
      return chunk == 0 ? rank : 2 * ranks - 1 - rank;
    case StageMap::both_ways:
      return chunk == 0 ? rank : ranks - 1 - rank;
  }
  return rank;
}

std::optional<ChunkPlace> Schedule::previous(ChunkPlace at) const {
  if (stage(at.rank, at.chunk) == 0) return {};
  switch (map) {
    case StageMap::straight:
      break;
    case StageMap::looped:
      if (at.rank == 0) return ChunkPlace{ranks - 1, at.chunk - 1};
      break;
    case StageMap::vee:
      if (at.chunk == 0) break;
      if (at.rank == ranks - 1) return ChunkPlace{at.rank, 0};
      return ChunkPlace{at.rank + 1, 1};
    case StageMap::both_ways:
      if (at.chunk == 1) return ChunkPlace{at.rank + 1, 1};
      break;
  }
  return ChunkPlace{at.rank - 1, at.chunk};
}

std::optional<ChunkPlace> Schedule::next(ChunkPlace at) const {
  if (stage(at.rank, at.chunk) == stages() - 1) return {};
  switch (map) {
    case StageMap::straight:
      break;
    case StageMap::looped:
      if (at.rank == ranks - 1) return ChunkPlace{0, at.chunk + 1};
      break;
    case StageMap::vee:
      if (at.chunk == 1) return ChunkPlace{at.rank - 1, 1};
      if (at.rank == ranks - 1) return ChunkPlace{at.rank, 1};
      break;
    case StageMap::both_ways:
      if (at.chunk == 1) return ChunkPlace{at.rank - 1, 1};
      break;
  }
  return ChunkPlace{at.rank + 1, at.chunk};
}

bool Schedule::passes(int microbatch, int chunk) const {
  if (map != StageMap::both_ways) return true;
  if (!has_backward) return chunk == 0;
  return (microbatch < microbatches / 2) == (chunk == 0);
}

double StepTimes::of(StepOp op) const {
  switch (op) {
    case StepOp::F:
      return F;
    case StepOp::B:
      return B;
    case StepOp::I:
      return B - W;
    case StepOp::W:
      return W;
    case StepOp::FB:
      break;
  }
  return FB;
}

std::span<const ScheduleEntry* const> schedule_entries() { return kEntries; }

const ScheduleEntry& schedule_entry(std::string_view name) {
  std::vector<std::string> names;
  for (const ScheduleEntry* entry : kEntries) {
    if (entry->name == name) return *entry;
    names.emplace_back(entry->name);
  }
  std::string all;
  for (const std::string& known : names) all += (all.empty() ? "" : ", ") + known;
  throw Error("there is no schedule \"{}\"; the nearest is {}, of {}", name, nearest(name, names), all);
}

Schedule make_schedule(std::string_view name, ScheduleShape shape) {
  const ScheduleEntry& entry = schedule_entry(name);
  shape = completed(entry, shape);
  Schedule s;
  s.name = entry.name;
  s.map = entry.map;
  s.ranks = shape.ranks;
  s.chunks_per_rank = shape.chunks;
  s.microbatches = shape.microbatches * shape.slices;
  s.slices = shape.slices;
  for (int r = 0; r < shape.ranks; ++r) {
    Steps steps = entry.build(shape, r);
    s.steps.push_back(entry.knows_slices ? std::move(steps) : cut_into_slices(steps, shape.slices));
  }
  return s;
}

double bubble_formula(const Schedule& schedule, const StepTimes& times) {
  const auto part = [&](double time) { return time / schedule.slices; };
  const StepTimes of_slice = {
      .F = part(times.F), .B = part(times.B), .W = part(times.W), .FB = part(times.FB)};
  return schedule_entry(schedule.name).bubble(shape_of(schedule), of_slice);
}

int peak_formula(const Schedule& schedule, int rank) {
  const ScheduleEntry& entry = schedule_entry(schedule.name);
  return entry.peak(shape_of(schedule), rank) * (entry.knows_slices ? 1 : schedule.slices);
}

}  // namespace phalanx
