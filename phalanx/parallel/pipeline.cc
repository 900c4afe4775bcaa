#include "phalanx/parallel/pipeline.h"

#include <algorithm>

#include "phalanx/base/beside.h"
#include "phalanx/base/error.h"
#include "phalanx/parallel/schedule/check.h"

namespace phalanx {
namespace {

int peer_of(const Group& pair) { return 1 - pair.rank(); }

Work send(Group& pair, Tensor stream) {
  PooledVector<P2P> messages;
  messages.push_back(send_to(peer_of(pair), std::move(stream)));
  return pair.exchange(std::move(messages));
}

Work receive(Group& pair, Tensor stream) {
  PooledVector<P2P> messages;
  messages.push_back(recv_from(peer_of(pair), std::move(stream)));
  return pair.exchange(std::move(messages));
}

// The two ranks at the ends of a channel.
Group& channel(Mesh& mesh, bool gradients, ChunkPlace into, int from) {
  const std::vector<int>& line = mesh.group(Axis::pp).info().members;
  const int a = line[static_cast<size_t>(std::min(into.rank, from))];
  const int b = line[static_cast<size_t>(std::max(into.rank, from))];
  const char* what = gradients ? "gradients" : "activations";
  return mesh.group(format("{} into chunk {} of stage rank {}", what, into.chunk, into.rank), {a, b});
}

// An overlapped pair is a forward, and beside it a backward.
void trace(const TimedStep& r) {
  TraceRing* ring = trace_ring();
  if (!ring) return;
  const Step& s = r.step;
  const bool pair = s.op == StepOp::FB;
  const TracePhase phase = pair                ? TracePhase::overlap
                           : s.op == StepOp::F ? TracePhase::forward
                           : s.op == StepOp::W ? TracePhase::weights
                                               : TracePhase::backward;
  Span span = {.name = pair ? "F" : op_name(s.op).data(),
               .begin_ns = r.begin_ns,
               .end_ns = r.end_ns,
               .kind = TraceKind::part,
               .of = {.phase = phase, .microbatch = s.microbatch},
               .chunk = s.chunk};
  ring->record(span);
  if (!pair) return;
  span.name = "B";
  span.row = TraceRow::beside;
  span.of.microbatch = s.b_microbatch;
  span.chunk = s.b_chunk;
  ring->record(span);
}

}  // namespace

Pipeline::Pipeline(Schedule schedule, Mesh& mesh)
    : schedule_(std::move(schedule)), rank_(mesh.coordinate(Axis::pp)) {
  if (schedule_.ranks != mesh.size(Axis::pp)) {
    throw Error("schedule {} is for {} ranks, the layout has pp = {}", schedule_.name, schedule_.ranks,
                mesh.size(Axis::pp));
  }
  const std::string why = check_schedule(schedule_);
  if (!why.empty()) throw Error("schedule {}: {}", schedule_.name, why);
  open_channels(mesh);
}

std::optional<ChunkPlace> Pipeline::source(bool gradients, int chunk) const {
  const ChunkPlace here = {rank_, chunk};
  return gradients ? schedule_.next(here) : schedule_.previous(here);
}

std::optional<ChunkPlace> Pipeline::target(bool gradients, int chunk) const {
  return source(!gradients, chunk);
}

void Pipeline::open_channels(Mesh& mesh) {
  const auto slices = static_cast<size_t>(schedule_.slices);
  for (const bool gradients : {false, true}) {
    for (int chunk = 0; chunk < schedule_.chunks_per_rank; ++chunk) {
      const auto from = source(gradients, chunk);
      if (from && from->rank != rank_) {
        Group* group = &channel(mesh, gradients, {rank_, chunk}, from->rank);
        Inlet inlet = {gradients, chunk, group, {}, std::vector<Message>(slices)};
        for (const Step& s : steps()) {
          if (!gradients && s.goes_forward() && s.chunk == chunk) inlet.microbatches.push_back(s.microbatch);
          if (gradients && s.goes_backward() && s.backward_chunk() == chunk) {
            inlet.microbatches.push_back(s.backward_microbatch());
          }
        }
        inlets_.push_back(std::move(inlet));
      }
      const auto to = target(gradients, chunk);
      if (to && to->rank != rank_) {
        Group* group = &channel(mesh, gradients, *to, rank_);
        outlets_.push_back({gradients, chunk, group, std::vector<Message>(slices)});
      }
    }
  }
}

void Pipeline::post_next(Inlet& inlet, StageRunner& stages) {
  if (inlet.posted == inlet.microbatches.size()) return;
  Message& message = inlet.place(inlet.posted);
  const int microbatch = inlet.microbatches[inlet.posted++];
  const TraceNamed named(microbatch);
  message.stream = stages.empty_stream(microbatch);
  message.work = receive(*inlet.group, message.stream);
}

Tensor Pipeline::take_parcel(bool gradients, ChunkPlace to, int microbatch) {
  const auto found = std::ranges::find_if(parcels_, [&](const Parcel& p) {
    return p.gradients == gradients && p.to == to && p.microbatch == microbatch;
  });
  PHX_CHECK(found != parcels_.end(), "nothing was given to chunk {} for microbatch {}", to.chunk, microbatch);
  Tensor stream = std::move(found->stream);
  parcels_.erase(found);
  return stream;
}

Tensor Pipeline::take(bool gradients, int chunk, int microbatch, StageRunner& stages) {
  const auto from = source(gradients, chunk);
  if (!from) return {};
  if (from->rank == rank_) return take_parcel(gradients, {rank_, chunk}, microbatch);
  const auto inlet = std::ranges::find_if(
      inlets_, [&](const Inlet& i) { return i.gradients == gradients && i.chunk == chunk; });
  PHX_CHECK(inlet->microbatches[inlet->taken] == microbatch, "microbatch {} is not the next of chunk {}",
            microbatch, chunk);
  Message& message = inlet->place(inlet->taken++);
  message.work->wait();
  message.work.reset();
  Tensor stream = std::exchange(message.stream, Tensor());
  post_next(*inlet, stages);
  return stream;
}

void Pipeline::give(bool gradients, int chunk, int microbatch, Tensor stream) {
  const auto to = target(gradients, chunk);
  if (!to) return;
  if (to->rank == rank_) {
    parcels_.push_back({gradients, *to, microbatch, std::move(stream)});
    return;
  }
  const auto outlet = std::ranges::find_if(
      outlets_, [&](const Outlet& o) { return o.gradients == gradients && o.chunk == chunk; });
  Message& message = outlet->sending[outlet->given++ % outlet->sending.size()];
  if (message.work) message.work->wait();
  message.stream = std::move(stream);
  const TraceNamed named(microbatch);
  message.work = send(*outlet->group, message.stream);
}

void Pipeline::run_step(const Step& s, StageRunner& stages) {
  TimedStep record = {.step = s, .called_ns = trace_now()};
  const int b_chunk = s.backward_chunk();
  const int b_microbatch = s.backward_microbatch();
  Tensor x;
  Tensor dy;
  if (s.goes_forward()) x = take(false, s.chunk, s.microbatch, stages);
  if (s.goes_backward()) dy = take(true, b_chunk, b_microbatch, stages);
  label_microbatches(s.microbatch, b_microbatch);
  record.begin_ns = trace_now();
  Tensor y;
  Tensor dx;
  if (s.op == StepOp::FB) {
    std::tie(y, dx) =
        phalanx::run(overlap(stages.forward(s.chunk, s.microbatch, std::move(x)),
                             beside(stages.backward(b_chunk, b_microbatch, std::move(dy), false))));
  } else if (s.goes_forward()) {
    y = phalanx::run(stages.forward(s.chunk, s.microbatch, std::move(x)));
  } else if (s.goes_backward()) {
    dx = phalanx::run(stages.backward(b_chunk, b_microbatch, std::move(dy), s.op == StepOp::I));
  } else {
    stages.weight_gradients(s.chunk, s.microbatch);
  }
  record.end_ns = trace_now();
  records_.push_back(record);
  trace(record);
  if (s.goes_forward()) give(false, s.chunk, s.microbatch, std::move(y));
  if (s.goes_backward()) give(true, b_chunk, b_microbatch, std::move(dx));
}

void Pipeline::run(StageRunner& stages) {
  records_.clear();
  for (Inlet& inlet : inlets_) {
    inlet.posted = inlet.taken = 0;
    for (int s = 0; s < schedule_.slices; ++s) post_next(inlet, stages);
  }
  for (const Step& step : steps()) run_step(step, stages);
  label_microbatches(-1, -1);
  for (Outlet& outlet : outlets_) {
    outlet.given = 0;
    for (Message& message : outlet.sending) {
      if (message.work) message.work->wait();
      message.work.reset();
      message.stream = Tensor();
    }
  }
}

}  // namespace phalanx
