// Runs a rank's list of a pipeline schedule: takes what other stages send, computes, sends on.
#pragma once

#include <optional>
#include <vector>

#include "phalanx/comm/mesh.h"
#include "phalanx/parallel/schedule/schedule.h"

namespace phalanx {

/// The computations of one rank's stages.
class StageRunner {
 public:
  virtual ~StageRunner() = default;
  /// Memory for the stream of a microbatch, as it goes from stage to stage.
  virtual Tensor empty_stream(int microbatch) = 0;
  /// `x`: what the stage before gave; undefined on the first stage, as the result on the last.
  virtual Task<Tensor> forward(int chunk, int microbatch, Tensor x) = 0;
  /// `dy`: the gradient of what forward gave; undefined on the last stage, as the result on the first.
  /// `defers`: weight gradients are put off.
  virtual Task<Tensor> backward(int chunk, int microbatch, Tensor dy, bool defers) = 0;
  /// Those that backward put off.
  virtual void weight_gradients(int chunk, int microbatch) = 0;
};

/// A step that ran; times as trace_now().
struct TimedStep {
  Step step;
  int64_t called_ns = 0;  ///< it began to wait for its inputs
  int64_t begin_ns = 0;   ///< they were there
  int64_t end_ns = 0;
};

/// One rank's end of a pipeline. Each channel (activations or gradients into one chunk of a rank) has one
/// receive posted ahead, and one send in flight: before its next send it waits for the last one. Of
/// microbatches cut into n slices they are n, each 1/n as big. That is no more than `deadlock` of
/// schedule/check.h asks, so a sound schedule cannot stop.
///
/// Bytes: each microbatch's stream goes forward, and its gradient back, once over each boundary of two stages
/// that lie on different ranks.
class Pipeline {
 public:
  /// Error: the schedule is not sound (check_schedule), or made for another number of ranks than pp's.
  Pipeline(Schedule schedule, Mesh& mesh);
  Pipeline(Pipeline&&) = default;

  const Schedule& schedule() const { return schedule_; }
  /// This rank's list.
  const Steps& steps() const { return schedule_.steps[static_cast<size_t>(rank_)]; }
  /// Runs it. All ranks of pp call it.
  void run(StageRunner& stages);
  /// What the last run did, in its order.
  const std::vector<TimedStep>& records() const { return records_; }

 private:
  struct Message {
    Tensor stream;
    std::optional<Work> work = {};
  };
  // Activations (or gradients) into a chunk of this rank from another one.
  struct Inlet {
    bool gradients;
    int chunk;
    Group* group;
    std::vector<int> microbatches;   // in the order of the steps that need them
    std::vector<Message> receiving;  // the i-th message in place i mod slices
    size_t posted = 0;
    size_t taken = 0;

    Message& place(size_t i) { return receiving[i % receiving.size()]; }
  };
  // The same into a chunk of another rank from a chunk of this one.
  struct Outlet {
    bool gradients;
    int chunk;  // of this rank
    Group* group;
    // Streams are kept until others take their place, so that what a rank holds does not depend on how soon
    // they went.
    std::vector<Message> sending;
    size_t given = 0;
  };
  // What one chunk gave to another one of this rank.
  struct Parcel {
    bool gradients;
    ChunkPlace to;
    int microbatch;
    Tensor stream;
  };

  std::optional<ChunkPlace> source(bool gradients, int chunk) const;
  std::optional<ChunkPlace> target(bool gradients, int chunk) const;
  void open_channels(Mesh& mesh);
  void post_next(Inlet& inlet, StageRunner& stages);
  Tensor take(bool gradients, int chunk, int microbatch, StageRunner& stages);
  Tensor take_parcel(bool gradients, ChunkPlace to, int microbatch);
  void give(bool gradients, int chunk, int microbatch, Tensor stream);
  void run_step(const Step& step, StageRunner& stages);

  Schedule schedule_;
  int rank_;
  std::vector<Inlet> inlets_;
  std::vector<Outlet> outlets_;
  std::vector<Parcel> parcels_;
  std::vector<TimedStep> records_;
};

}  // namespace phalanx
