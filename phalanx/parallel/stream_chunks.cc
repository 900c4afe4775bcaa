#include "phalanx/parallel/stream_chunks.h"

#include "phalanx/comm/collectives.h"
#include "phalanx/comm/reduce.h"
#include "phalanx/parallel/context_rows.h"

namespace phalanx {
namespace {

// The rank so many places behind this one, or, with a negative step, before it.
int other(const Group& group, int step) { return (group.rank() + group.size() + step) % group.size(); }

RowRun run_of(const Group& group, int64_t rows, int rank) { return equal_run(rows, rank, group.size()); }

Tensor slice(const Tensor& x, RowRun run) { return x.slice(run.begin, run.end); }

// Rows for all_reduces that send no more than one whole: such as are not small.
PooledVector<RowRun> runs_to_reduce(const Group& group, const Tensor& y, bool cut) {
  const int ranks = group.size();
  const bool small = static_cast<int64_t>(y.bytes()) / ranks <= collectives::kSmallBytes;
  const int count = cut && !small ? ranks : 1;
  PooledVector<RowRun> runs;
  for (int i = 0; i < count; ++i) {
    const collectives::Range r = collectives::part_of(y.rows(), count, i);
    runs.push_back({r.begin, r.end});
  }
  return runs;
}

}  // namespace

GatherChunks::GatherChunks(Tensor all) : rows_(all.rows()), all_(std::move(all)) {
  chunks_.push_back({{0, rows_}, std::nullopt});
}

GatherChunks::GatherChunks(Group& group, Tensor own, bool cut) : rows_(own.rows() * group.size()) {
  if (!cut) {
    chunks_.push_back({{0, rows_}, group.all_gather(own)});
    return;
  }
  all_ = Tensor::empty(own.shape().with_rows(rows_), own.dtype(), own.device());
  const RowRun here = run_of(group, rows_, group.rank());
  chunks_.push_back({here, std::nullopt});
  for (int i = 1; i < group.size(); ++i) {
    const int from = other(group, -i);
    const RowRun run = run_of(group, rows_, from);
    PooledVector<P2P> messages = {send_to(other(group, i), own), recv_from(from, slice(all_, run))};
    chunks_.push_back({run, group.exchange(std::move(messages))});
  }
  copy_into(slice(all_, here), own);
}

Task<RowRun> GatherChunks::next() {
  Chunk& chunk = chunks_[next_++];
  if (chunk.work) {
    Work& work = *chunk.work;  // g++ 12.2 would copy *chunk.work
    const Tensor gathered = co_await work;
    chunk.work.reset();
    if (gathered.defined()) all_ = gathered;
  }
  co_return chunk.rows;
}

Task<Tensor> GatherChunks::rest() {
  while (more()) co_await next();
  co_return std::exchange(all_, Tensor());
}

ReduceChunks::ReduceChunks(Tensor y) : y_(std::move(y)) { chunks_.push_back({0, y_.rows()}); }

ReduceChunks::ReduceChunks(Group& group, Tensor y, bool scatter, bool cut)
    : group_(&group),
      how_(!scatter ? How::all_reduce
           : cut    ? How::messages
                    : How::reduce_scatter),
      y_(std::move(y)) {
  if (how_ != How::messages) {
    chunks_ = runs_to_reduce(group, y_, cut && !scatter);
    return;
  }
  const int64_t own = y_.rows() / group.size();
  received_ = Tensor::empty(y_.shape().with_rows(y_.rows() - own), y_.dtype(), y_.device());
  for (int i = 1; i <= group.size(); ++i) chunks_.push_back(run_of(group, y_.rows(), other(group, i)));
}

void ReduceChunks::send() {
  const Tensor written = part();
  const auto i = static_cast<int>(++next_);
  if (how_ == How::all_reduce) works_.push_back(group_->all_reduce(written));
  if (how_ == How::reduce_scatter) works_.push_back(group_->reduce_scatter(written));
  if (how_ != How::messages || !more()) return;
  const int64_t n = written.rows();
  PooledVector<P2P> messages = {send_to(other(*group_, i), written),
                                recv_from(other(*group_, -i), received_.slice((i - 1) * n, i * n))};
  works_.push_back(group_->exchange(std::move(messages)));
}

Task<Tensor> ReduceChunks::sum() {
  PHX_CHECK(!more(), "the sum of {} chunks, {} of which were sent", chunks_.size(), next_);
  Tensor result;
  for (Work& work : works_) result = co_await work;
  works_.clear();
  if (how_ == How::messages) result = scattered();
  if (how_ == How::alone || how_ == How::all_reduce) result = y_;
  y_ = Tensor();
  received_ = Tensor();
  co_return result;
}

// This rank's rows of y and of what it received, summed.
Tensor ReduceChunks::scattered() const {
  const RowRun run = run_of(*group_, y_.rows(), group_->rank());
  const Tensor own = slice(y_, run);
  const Tensor out = Tensor::empty(own.shape(), own.dtype(), own.device());
  PooledVector<Tensor> in;
  for (int r = 0; r < group_->size(); ++r) {
    const int64_t i = (group_->rank() - r + group_->size()) % group_->size();  // places before this rank
    in.push_back(i == 0 ? own : received_.slice((i - 1) * run.rows(), i * run.rows()));
  }
  reduce_tensors(out, in, Reduce::sum);
  return out;
}

}  // namespace phalanx
