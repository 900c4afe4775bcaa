#include "phalanx/parallel/context_parallel.h"

#include "phalanx/ops/head_runs.h"

namespace phalanx {
namespace {

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
  const PooledVector<int64_t> rows(static_cast<size_t>(share_.ulysses), x.rows());
  Work work = ulysses_.all_to_all(pack_heads(x, heads, share_.ulysses), rows, rows);
  co_return co_await work;
}

Task<Tensor> ContextParallel::to_rows(Tensor y, int heads) {
  if (share_.ulysses == 1) co_return y;
  const PooledVector<int64_t> rows(static_cast<size_t>(share_.ulysses), y.rows() / share_.ulysses);
  Work work = ulysses_.all_to_all(y, rows, rows);
  const Tensor received = co_await work;
  co_return unpack_heads(received, heads, share_.ulysses);
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
