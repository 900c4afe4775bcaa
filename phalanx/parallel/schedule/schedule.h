// Pipeline schedules: for every rank of a pipeline the list of its steps, and which stage of the model each
// of its chunks is. check.h proves a schedule sound before it runs, simulate.h times it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "phalanx/parallel/schedule/step.h"

namespace phalanx {

/// How stages lie on P ranks.
enum class StageMap : uint8_t {
  straight,   ///< one chunk: stage r
  looped,     ///< chunk c of rank r: stage c P + r
  vee,        ///< two chunks: stages r and 2P - 1 - r
  both_ways,  ///< two chunks are two directions: stage r, and P - 1 - r. Each stage lies on two ranks.
};

/// A chunk of a rank.
struct ChunkPlace {
  int rank = 0;
  int chunk = 0;
  friend bool operator==(const ChunkPlace&, const ChunkPlace&) = default;
};

/// A schedule of one training step.
struct Schedule {
  std::string name;
  StageMap map = StageMap::straight;
  int ranks = 0;
  int chunks_per_rank = 1;   ///< of both_ways: directions
  int microbatches = 0;      ///< of the whole step, both directions together; cut ones count by slices
  int slices = 1;            ///< of a microbatch: number m · slices + s is slice s of microbatch m
  bool has_backward = true;  ///< false: forwards alone, all in direction 0
  std::vector<Steps> steps;  ///< by rank

  int stages() const;
  int stage(int rank, int chunk) const;
  /// Where a microbatch that passes `at` comes from; nothing before the first stage.
  std::optional<ChunkPlace> previous(ChunkPlace at) const;
  /// Where it goes; nothing after the last stage.
  std::optional<ChunkPlace> next(ChunkPlace at) const;
  /// Whether the microbatch passes this chunk of each rank: of both_ways, the first half goes in direction 0.
  bool passes(int microbatch, int chunk) const;
};

/// Seconds (or any unit) of one step of one chunk. I takes B - W; a slice takes an equal part of it.
struct StepTimes {
  double F = 1;
  double B = 2;  ///< whole backward
  double W = 1;  ///< its weight-gradient part
  double FB = 3;
  double of(StepOp op) const;
};

/// What a schedule is made for.
struct ScheduleShape {
  int ranks = 1;
  int microbatches = 1;
  int chunks = 0;  ///< of a rank; 0: the schedule's own number
  int slices = 1;  ///< of a microbatch
};

/// A kind of schedule. Its functions take shapes that `make_schedule` accepts, with the chunks filled in.
struct ScheduleEntry {
  std::string_view name;
  std::string_view summary;  ///< one line for people
  int chunks = 1;            ///< the default
  bool any_chunks = false;   ///< whether others may be asked for
  StageMap map = StageMap::straight;
  bool knows_slices = false;  ///< of `build` and `peak`: they are of slices; else of whole microbatches
  /// Error: the shape cannot be; names the least number of microbatches.
  void (*require)(const ScheduleShape& shape) = nullptr;
  Steps (*build)(const ScheduleShape& shape, int rank) = nullptr;
  /// Time that the worst rank is idle within one training step; `times` are those of a slice.
  double (*bubble)(const ScheduleShape& shape, const StepTimes& times) = nullptr;
  /// Most chunk activations that rank `rank` holds at once: from F until B or I.
  int (*peak)(const ScheduleShape& shape, int rank) = nullptr;
};

/// All kinds, in the order in which the table of docs/parallel.md has them.
std::span<const ScheduleEntry* const> schedule_entries();
/// Error: no such name; tells the nearest.
const ScheduleEntry& schedule_entry(std::string_view name);
/// Error: as schedule_entry; or the kind does not run on this shape.
Schedule make_schedule(std::string_view name, ScheduleShape shape);

/// The forwards of other microbatches (or slices, as many as in `like`) over the same stages. Of both_ways
/// every rank has one step for each microbatch; else one for each of its chunks.
Schedule forward_only(const Schedule& like, int microbatches);

/// The published formulas, for a schedule that make_schedule gave; each schedule's file says when they are
/// exact. `times` are those of a whole microbatch, and the peak is of slices. Cut up, overlapped pairs may
/// hold or idle less than they say, interleaved idle less or (M > P, no multiple of P) more.
double bubble_formula(const Schedule& schedule, const StepTimes& times);
int peak_formula(const Schedule& schedule, int rank);

}  // namespace phalanx
