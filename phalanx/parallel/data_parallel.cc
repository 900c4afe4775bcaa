#include "phalanx/parallel/data_parallel.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "phalanx/ops/cast.h"
#include "phalanx/ops/elementwise.h"

namespace phalanx {
namespace {

Work gather(const Bucket& b, Tensor share) {
  const TraceNamed named(b.unit, "weights", TracePhase::gather);
  return b.sharers->all_gather(std::move(share));
}

Work scatter_sum(const Bucket& b, Tensor grads) {
  const TraceNamed named(b.unit, "gradients", TracePhase::reduce);
  return b.sharers->reduce_scatter(std::move(grads));
}

Work sum_replicas(const Bucket& b, Tensor share) {
  const TraceNamed named(b.unit, "gradients", TracePhase::reduce);
  return b.replicas->all_reduce(std::move(share));
}

}  // namespace

std::vector<Bucket*>& DataParallel::buckets_of(Part& part) {
  if (part.buckets_.empty()) {
    for (const Parameter* p : part.parameters_) {
      Bucket* bucket = &ParameterStore::bucket_of(*p);
      if (std::ranges::find(part.buckets_, bucket) == part.buckets_.end()) part.buckets_.push_back(bucket);
    }
  }
  return part.buckets_;
}

// The values as computed with, of those that are kept.
Tensor DataParallel::wide(const Tensor& kept) const {
  if (kept.dtype() == store_.compute_dtype()) return kept;
  Tensor values = Tensor::empty(kept.shape(), store_.compute_dtype(), kept.device());
  widen_into(values, kept);
  return values;
}

void DataParallel::start_gather(Bucket& b) {
  b.settle();
  if (b.values.defined() || b.gather.work) return;
  if (store_.zero() == Zero::weights && b.sharers) {
    b.gather.work = gather(b, store_.kept_share(b));
    return;
  }
  b.values = wide(store_.zero() == Zero::weights ? store_.kept_share(b) : store_.kept_values(b));
  b.bind();
}

void DataParallel::arrive(Bucket& b) {
  if (!b.gather.work) return;
  b.values = wide(b.gather.work->wait());
  b.gather.work.reset();
  b.bind();
}

Task<DataParallel::Hold> DataParallel::hold(Part* part) {
  std::vector<Bucket*>& buckets = buckets_of(*part);
  for (Bucket* b : buckets) {
    ++b->holds;
    start_gather(*b);
  }
  for (Bucket* b : buckets) {
    // Another task may wait for it too: whoever goes on first takes it.
    if (b->gather.work) co_await Suspend(b->gather);
    arrive(*b);
  }
  co_return Hold(*this, *part);
}

void DataParallel::prefetch(Part& part) {
  if (store_.zero() < Zero::weights) return;
  for (Bucket* b : buckets_of(part)) start_gather(*b);
}

void DataParallel::release(Part& part) {
  for (Bucket* b : buckets_of(part)) {
    if (--b->holds > 0 || !store_.keeps_shares()) continue;
    b->values = Tensor();
    b->bind();
  }
}

void DataParallel::expect(Part& part, int passes) {
  for (Bucket* b : buckets_of(part)) b->passes_left += passes;
}

void DataParallel::passed(Part& part) {
  for (Bucket* b : buckets_of(part)) {
    --b->passes_left;
    if (b->over_stages) continue;  // its ranks come to it in different orders
    if (b->passes_left == 0 || store_.zero() >= Zero::gradients) start_sum(*b);
  }
}

void DataParallel::start_sum(Bucket& b) {
  b.settle();
  sums_.push_back(sum(&b));
  sums_.back().resume();
}

Task<> DataParallel::sum(Bucket* bucket) {
  Bucket& b = *bucket;
  b.complete_grads();
  const Tensor all = b.grads;
  const bool is_first = !std::exchange(b.reduced, true);
  const bool keeps = store_.zero() < Zero::gradients;
  if (!keeps) {
    b.grads = Tensor();
    b.bind();
  }
  Tensor share = all;
  if (b.sharers) {
    Work scattering = scatter_sum(b, all);
    share = co_await scattering;
  }
  if (b.replicas) {
    Work summing = sum_replicas(b, share);
    co_await summing;
  }
  if (keeps && !b.sharers) co_return;  // in place
  if (!keeps && !b.summed.defined()) b.summed = Tensor::empty(share.shape(), share.dtype(), share.device());
  const Tensor kept = store_.share_of_grads(b);
  if (keeps || is_first) {
    copy_into(kept, share);
  } else {
    copy_into(kept, add(kept, share));
  }
}

Task<> DataParallel::settle(size_t in_flight) {
  while (sums_.size() > in_flight) {
    while (!sums_.front().done()) {
      co_await Suspend(*sums_.front().waiting());
      sums_.front().resume();
    }
    sums_.front().result();
    sums_.erase(sums_.begin());
  }
}

Task<> DataParallel::reduce_grads() {
  const TracePart part("", "gradient reduction", TracePhase::reduce);
  for (Bucket& b : store_.buckets()) {
    b.passes_left = 0;
    if (!b.reduced) start_sum(b);
  }
  co_await settle(0);
}

Task<> DataParallel::publish_values() {
  for (const Bucket& b : store_.buckets()) {
    PHX_CHECK(!b.gather.work, "{}: weights of before the update are on their way", b.unit);
  }
  if (store_.zero() == Zero::weights) co_return;
  const TracePart part("", "weight gather", TracePhase::gather);
  PooledVector<Work> works;
  PooledVector<Tensor> targets;
  for (Bucket& b : store_.buckets()) {
    if (!b.sharers) continue;
    b.settle();
    works.push_back(gather(b, store_.kept_share(b)));
    targets.push_back(store_.kept_values(b));
  }
  for (size_t i = 0; i < works.size(); ++i) {
    Work& work = works[i];
    const Tensor result = co_await work;
    copy_into(targets[i], result);
  }
}

// Σ g² of a parameter whose rows may lie anywhere in ep: summed by row, and rows in the order of their
// numbers. The same on every rank of ep.
Task<double> DataParallel::squares_by_row(Parameter* p) {
  const LocalSlice& slice = p->slice();
  const Tensor squares = Tensor::zeros({slice.full[0]}, DType::f64);
  const int64_t rows = slice.local[0];
  const Tensor grads = store_.own_grad(*p).view({rows, slice.local.numel() / rows});
  for (int64_t r = 0; r < rows; ++r) {
    const bool moved = !p->row_numbers().empty();
    const int64_t number = moved ? p->row_numbers()[static_cast<size_t>(r)] : slice.begin[0] + r;
    squares.data<double>()[number] = number_of(sum_of_squares(grads.slice(r, r + 1)));
  }
  Work over_ep = store_.mesh().group(Axis::ep).all_reduce(squares);
  co_await over_ep;
  const auto all = squares.span<double>();
  co_return std::accumulate(all.begin(), all.end(), 0.0);
}

Task<double> DataParallel::grad_norm() {
  const TracePart part("", "gradient norm", TracePhase::reduce);
  const Tensor squares = Tensor::zeros({1}, DType::f64, store_.device());
  double by_row = 0;
  for (const Bucket& b : store_.buckets()) {
    const bool mine = b.counts && (!b.replicas || b.replicas->rank() == 0);
    const auto moves = [this](const Parameter* p) { return store_.sums_by_row(*p); };
    if (std::ranges::none_of(b.parameters, moves)) {
      if (mine) add_into(squares, sum_of_squares(store_.share_of_grads(b)));
      continue;
    }
    for (Parameter* p : b.parameters) {
      if (!moves(p)) {
        if (mine) add_into(squares, sum_of_squares(store_.own_grad(*p)));
        continue;
      }
      const double sum = co_await squares_by_row(p);
      if (mine && store_.mesh().coordinate(Axis::ep) == 0) by_row += sum;
    }
  }
  const double sum = number_of(squares) + by_row;
  const Tensor all = Tensor::of(Shape{1}, std::span<const double>(&sum, 1));
  Work over_world = store_.mesh().world().all_reduce(all);
  co_await over_world;
  co_return std::sqrt(all.data<double>()[0]);
}

}  // namespace phalanx
