#include "phalanx/parallel/context_parallel.h"

#include <algorithm>
#include <cstring>

#include "phalanx/base/parallel_for.h"
#include "phalanx/base/trace.h"

namespace phalanx {
namespace {

constexpr int64_t kRows = 64;  // of one task

// How heads lie in a row: in `parts` runs of so many elements, one for each rank or shared by neighbours.
struct Runs {
  int ranks;
  int parts;
  int64_t width;

  Runs(int all_heads, int over, int64_t row)
      : ranks(over), parts(std::min(all_heads, over)), width(row / parts) {
    PHX_CHECK(all_heads % parts == 0 && ranks % parts == 0, "{} heads over {} ranks", all_heads, ranks);
  }
  int64_t first(int rank) const { return int64_t{rank} * parts / ranks * width; }
};

// [R, T/cp, heads(heads) · d]: for each rank the columns of its heads.
Tensor packed(const Tensor& x, const Runs& runs) {
  const Tensor out = Tensor::empty({runs.ranks * x.rows(), runs.width}, x.dtype());
  const TraceSpan span(TraceKind::elementwise, "pack_heads", 2 * out.bytes());
  const size_t item = dtype_size(x.dtype());
  const size_t bytes = static_cast<size_t>(runs.width) * item;
  parallel_for(out.rows(), kRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = i % x.rows() * x.dim(1) + runs.first(static_cast<int>(i / x.rows()));
      std::memcpy(out.raw() + static_cast<size_t>(i) * bytes, x.raw() + static_cast<size_t>(from) * item,
                  bytes);
    }
  });
  return out;
}

// The reverse; what several ranks have sent for one run is summed, in rank order.
Tensor unpacked(const Tensor& y, const Runs& runs) {
  const int64_t rows = y.rows() / runs.ranks;
  const Tensor out = Tensor::empty({rows, runs.width * runs.parts}, y.dtype());
  const TraceSpan span(TraceKind::elementwise, "unpack_heads", 2 * y.bytes());
  visit_float(y.dtype(), [&](auto t) {
    using T = decltype(t);
    parallel_for(rows, kRows, [&](int64_t begin, int64_t end) {
      for (int rank = 0; rank < runs.ranks; ++rank) {
        const bool adds = rank > 0 && runs.first(rank) == runs.first(rank - 1);
        for (int64_t i = begin; i < end; ++i) {
          const T* from = y.data<const T>() + (rank * rows + i) * runs.width;
          T* to = out.data<T>() + i * out.dim(1) + runs.first(rank);
          for (int64_t k = 0; k < runs.width; ++k) to[k] = adds ? to[k] + from[k] : from[k];
        }
      }
    });
  });
  return out;
}

// Every `stride`-th of the mesh's ranks of cp, from `first` on.
Group& ranks_of_cp(Mesh& mesh, const char* name, int first, int count, int stride) {
  const std::vector<int>& all = mesh.group(Axis::cp).info().members;
  std::vector<int> members;
  for (int i = 0; i < count; ++i) {
    const int rank = first + i * stride;
    members.push_back(all[static_cast<size_t>(rank)]);
  }
  return mesh.group(name, members);
}

ContextShare share_of(const Mesh& mesh, int ulysses) {
  const int cp = mesh.size(Axis::cp);
  PHX_CHECK(ulysses > 0 && cp % ulysses == 0, "ulysses = {} over cp = {}", ulysses, cp);
  return {.cp = cp, .rank = mesh.coordinate(Axis::cp), .ulysses = ulysses};
}

}  // namespace

ContextParallel::ContextParallel(Mesh& mesh, int ulysses)
    : share_(share_of(mesh, ulysses)),
      ulysses_(ranks_of_cp(mesh, "ulysses", share_.ring_rank() * ulysses, ulysses, 1)),
      ring_(ranks_of_cp(mesh, "ring", share_.ulysses_rank(), share_.ring(), ulysses)) {}

Task<Tensor> ContextParallel::to_heads(Tensor x, int heads) {
  if (share_.ulysses == 1) co_return x;
  const Runs runs(heads, share_.ulysses, x.dim(1));
  const PooledVector<int64_t> rows(static_cast<size_t>(share_.ulysses), x.rows());
  Work work = ulysses_.all_to_all(packed(x, runs), rows, rows);
  co_return co_await work;
}

Task<Tensor> ContextParallel::to_rows(Tensor y, int heads) {
  if (share_.ulysses == 1) co_return y;
  const Runs runs(heads, share_.ulysses, y.dim(1) * std::min(heads, share_.ulysses));
  const PooledVector<int64_t> rows(static_cast<size_t>(share_.ulysses), y.rows() / share_.ulysses);
  Work work = ulysses_.all_to_all(y, rows, rows);
  const Tensor received = co_await work;
  co_return unpacked(received, runs);
}

AttentionConfig ContextParallel::own_heads(AttentionConfig all) const {
  all.heads = heads(all.heads);
  all.kv_heads = heads(all.kv_heads);
  return all;
}

Task<AttendedRows> ContextParallel::attend(Tensor q, Tensor k, Tensor v, SequenceRows rows,
                                           AttentionConfig config) {
  AttendedRows a;
  a.q_THd = co_await to_heads(std::move(q), config.heads);
  a.k_TGd = co_await to_heads(std::move(k), config.kv_heads);
  a.v_TGd = co_await to_heads(std::move(v), config.kv_heads);
  a.by_heads = co_await ring_.forward(a.q_THd, a.k_TGd, a.v_TGd, rows, own_heads(config));
  a.y_THd = co_await to_rows(a.by_heads.y_THd, config.heads);
  co_return a;
}

Task<AttentionGradients> ContextParallel::attend_backward(Tensor dy, AttendedRows a, SequenceRows rows,
                                                          AttentionConfig config) {
  dy = co_await to_heads(std::move(dy), config.heads);
  AttentionBackward in = {dy, a.q_THd, a.k_TGd, a.v_TGd, a.by_heads};
  AttentionGradients d = co_await ring_.backward(std::move(in), rows, own_heads(config));
  d.dq_THd = co_await to_rows(std::move(d.dq_THd), config.heads);
  d.dk_TGd = co_await to_rows(std::move(d.dk_TGd), config.kv_heads);
  d.dv_TGd = co_await to_rows(std::move(d.dv_TGd), config.kv_heads);
  co_return d;
}

Tensor ContextParallel::own_offsets(const Tensor& offsets) const {
  return offsets_in(offsets, share_.rows(offsets.span<const int64_t>().back()));
}

}  // namespace phalanx
