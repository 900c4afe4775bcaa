// Attention in bf16: tiles become calls of cuDNN, dense where sequences are alike, ragged elsewhere.
#include <algorithm>
#include <array>
#include <bit>
#include <deque>

#include "phalanx/base/error.h"
#include "phalanx/ops/attention_cudnn.h"
#include "phalanx/ops/cuda_ops.h"
#include "phalanx/tensor/stream.h"

namespace phalanx::cuda {
namespace {

using Tiles = std::span<const AttentionTile>;

// cuDNN's tiles divide dense sequences: for others its backward before 9.26 may read or give NaN
// (github.com/NVIDIA/cudnn-frontend, issues 160 and 1072; github.com/pytorch/pytorch, issue 196678).
constexpr int64_t kDenseRows = 128;

// Deterministic backward keeps the gradients of scores, in bf16; as much of them at once.
constexpr int64_t kScoreGradientBytes = int64_t{1} << 30;

// Past 128 columns, cuDNN 9.14's backward has a kernel for latent attention's heads; with others it leaves
// out keys of ragged sequences, and says nothing.
void check_supported(const AttentionConfig& c, bool backward) {
  const int64_t d = c.head_dim;
  const int64_t e = c.values();
  const bool wide = d > 128 || e > 128;
  const bool latent = d <= 192 && e > 64 && e <= 128;
  if (d % 8 == 0 && e % 8 == 0 && d <= 256 && e <= 256 && (!backward || !wide || latent)) return;
  throw Error(
      "attention in bf16 on a GPU: heads of {} (q and k) and {} (v) columns. Both are a multiple of 8, at "
      "most "
      "256 forward, and backward at most 128, or q's at most 192 with v's more than 64; f32 takes any",
      d, e);
}

// n or some more, so that near sizes share a plan (it takes 0.2 to 0.4 s to make one): in steps of a quarter
// of a power of two, at least kDenseRows.
int64_t about(int64_t n) {
  const auto power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(n)));
  const int64_t step = std::max(kDenseRows, power / 4);
  return (n + step - 1) / step * step;
}

int64_t most_queries(Tiles tiles) { return std::ranges::max(tiles, {}, &AttentionTile::queries).queries; }
int64_t most_keys(Tiles tiles) { return std::ranges::max(tiles, {}, &AttentionTile::keys).keys; }

// Rows from one tile to the next.
struct Steps {
  int64_t query = 0;
  int64_t key = 0;
};

Steps steps_of(Tiles tiles) {
  const AttentionTile& first = tiles[0];
  if (tiles.size() == 1) return {first.queries, first.keys};
  return {tiles[1].first_query - first.first_query, tiles[1].first_key - first.first_key};
}

bool are_dense(Tiles tiles) {
  const AttentionTile& first = tiles[0];
  const Steps step = steps_of(tiles);
  if (first.queries % kDenseRows != 0 || first.keys % kDenseRows != 0) return false;
  if (step.query < first.queries || step.key < first.keys) return false;
  for (size_t i = 0; i < tiles.size(); ++i) {
    AttentionTile expected = first;
    expected.first_query += static_cast<int64_t>(i) * step.query;
    expected.first_key += static_cast<int64_t>(i) * step.key;
    if (tiles[i] != expected) return false;
  }
  return true;
}

// All heads of these tiles in one call; `rows` of queries and keys that the tensors have.
AttentionCall call_of(Tiles tiles, int64_t query_rows, int64_t key_rows, const AttentionConfig& c) {
  AttentionCall call = {.causal = tiles[0].causal,
                        .heads = c.heads,
                        .kv_heads = c.kv_heads,
                        .row_heads = c.heads,
                        .row_kv_heads = c.kv_heads,
                        .head_dim = c.head_dim,
                        .value_dim = c.values(),
                        .scale = static_cast<float>(c.scale)};
  if (are_dense(tiles)) {
    const Steps step = steps_of(tiles);
    call.batch = std::ssize(tiles);
    call.queries = tiles[0].queries;
    call.keys = tiles[0].keys;
    call.query_step = step.query;
    call.key_step = step.key;
    return call;
  }
  call.ragged = true;
  call.batch = static_cast<int64_t>(std::bit_ceil(tiles.size()));  // some have no rows
  call.queries = about(most_queries(tiles));
  call.keys = about(most_keys(tiles));
  call.query_rows = about(query_rows);
  call.key_rows = about(key_rows);
  return call;
}

// What a ragged call reads in device memory. Tables of the last sequences stay there, so that a step which
// meets them again copies nothing.
class Tables {
 public:
  RaggedSequences of(Tiles tiles, const AttentionCall& call) {
    const CUstream_st* const stream = current_stream().native();
    const Row row = {call.row_heads * call.head_dim, call.row_kv_heads * call.head_dim,
                     call.row_kv_heads * call.value_dim, call.row_heads * call.value_dim, call.row_heads};
    const auto found = std::ranges::find_if(kept_, [&](const Table& t) {
      return t.stream == stream && t.row == row && std::ranges::equal(t.tiles, tiles);
    });
    if (found != kept_.end()) return pointers(found->data, call.batch);
    if (kept_.size() == kMost) kept_.pop_back();
    kept_.push_front({stream, row, {tiles.begin(), tiles.end()}, built(tiles, row, call.batch)});
    return pointers(kept_.front().data, call.batch);
  }

  static Tables& of_this_thread() {
    static thread_local Tables tables;
    return tables;
  }

 private:
  static constexpr size_t kMost = 32;
  using Row = std::array<int64_t, 5>;  // elements in a row of q, k, v, y, log_sum_exp

  struct Table {
    const CUstream_st* stream;  // in whose order the table was written
    Row row;
    PooledVector<AttentionTile> tiles;
    Tensor data;  // i64 [7, width(batch)]: five rows of offsets, two of i32 counts
  };

  // Even, so that rows are aligned to 16 bytes.
  static int64_t width(int64_t batch) { return (batch + 2) / 2 * 2; }

  static Tensor built(Tiles tiles, const Row& row, int64_t batch) {
    const int64_t n = width(batch);
    const Tensor host = Tensor::zeros({7, n}, DType::i64);
    int64_t* const offsets = host.data<int64_t>();
    auto* const queries = reinterpret_cast<int32_t*>(offsets + 5 * n);
    auto* const keys = reinterpret_cast<int32_t*>(offsets + 6 * n);
    const AttentionTile& last = tiles.back();
    for (int64_t b = 0; b < n; ++b) {
      const bool lives = b < std::ssize(tiles);
      // Those without rows begin where the last ends.
      const AttentionTile t = lives ? tiles[static_cast<size_t>(b)]
                                    : AttentionTile{.first_query = last.first_query + last.queries,
                                                    .first_key = last.first_key + last.keys};
      for (int64_t i = 0; i < 5; ++i) {
        const bool of_keys = i == 1 || i == 2;
        offsets[i * n + b] = (of_keys ? t.first_key : t.first_query) * row[static_cast<size_t>(i)];
      }
      queries[b] = static_cast<int32_t>(t.queries);
      keys[b] = static_cast<int32_t>(t.keys);
    }
    return host.to(current_stream().device());
  }

  static RaggedSequences pointers(const Tensor& data, int64_t batch) {
    int64_t* const at = data.device_data<int64_t>();
    const int64_t n = width(batch);
    return {at, at + n, at + 2 * n, at + 3 * n, at + 4 * n, at + 5 * n, at + 6 * n};
  }

  std::deque<Table> kept_;
};

// Where a call's first row and head begin in tensors of so many columns a head.
struct Corner {
  int64_t query = 0;
  int64_t key = 0;
  int64_t head = 0;
  int64_t kv_head = 0;
};

Corner corner_of(Tiles tiles, const AttentionCall& call, int64_t kv_head) {
  const int64_t head = kv_head * (call.heads / call.kv_heads);
  if (call.ragged) return {0, 0, head, kv_head};
  return {tiles[0].first_query, tiles[0].first_key, head, kv_head};
}

// The element at row and head.
void* at(const Tensor& t, int64_t row, int64_t row_heads, int64_t head) {
  const int64_t columns = t.dim(1) / row_heads;
  return t.address() + (row * row_heads + head) * columns * static_cast<int64_t>(dtype_size(t.dtype()));
}

void forward(const std::array<Tensor, 3>& q_k_v, const Attended& out, Tiles tiles, const AttentionConfig& c) {
  const auto& [q, k, v] = q_k_v;
  const AttentionCall call = call_of(tiles, q.rows(), k.rows(), c);
  const Corner from = corner_of(tiles, call, 0);
  AttentionOperands o = {.q = at(q, from.query, c.heads, 0),
                         .k = at(k, from.key, c.kv_heads, 0),
                         .v = at(v, from.key, c.kv_heads, 0),
                         .y = at(out.y_THd, from.query, c.heads, 0),
                         .log_sum_exp = at(out.log_sum_exp_TH, from.query, c.heads, 0)};
  if (call.ragged) o.ragged = Tables::of_this_thread().of(tiles, call);
  run_cudnn(call, o);
}

// `kv_heads` of them from `kv_head` on, and the heads that share them.
struct HeadRange {
  int64_t kv_head = 0;
  int64_t kv_heads = 0;
};

void backward(const AttentionBackward& in, const AttentionGradients& out, Tiles tiles, const HeadRange& range,
              const AttentionConfig& c) {
  AttentionCall call = call_of(tiles, in.q_THd.rows(), in.k_SGd.rows(), c);
  call.backward = true;
  call.deterministic = c.deterministic;
  call.kv_heads = range.kv_heads;
  call.heads = range.kv_heads * (c.heads / c.kv_heads);
  const Corner from = corner_of(tiles, call, range.kv_head);
  const auto of_queries = [&](const Tensor& t) { return at(t, from.query, c.heads, from.head); };
  const auto of_keys = [&](const Tensor& t) { return at(t, from.key, c.kv_heads, from.kv_head); };
  AttentionOperands o = {.q = of_queries(in.q_THd),
                         .k = of_keys(in.k_SGd),
                         .v = of_keys(in.v_SGd),
                         .y = of_queries(in.forward.y_THd),
                         .log_sum_exp = of_queries(in.forward.log_sum_exp_TH),
                         .dy = of_queries(in.dy_THd),
                         .dq = of_queries(out.dq_THd),
                         .dk = of_keys(out.dk_TGd),
                         .dv = of_keys(out.dv_TGd)};
  if (call.ragged) {
    o.ragged = Tables::of_this_thread().of(tiles, call);
    return run_cudnn(call, o);
  }
  const Tensor kept = heads_first(call, static_cast<const float*>(o.log_sum_exp), in.q_THd.device());
  o.log_sum_exp = kept.address();
  run_cudnn(call, o);
}

// Sequences of near lengths, a few heads of one sequence if need be, so that the gradients of their scores
// stay below kScoreGradientBytes.
void backward_in_pieces(const AttentionBackward& in, const AttentionGradients& out, Tiles tiles,
                        const AttentionConfig& c) {
  const int64_t group = c.heads / c.kv_heads;
  const int64_t of_group = 2 * group * about(most_queries(tiles)) * about(most_keys(tiles));
  const int64_t groups = std::max<int64_t>(1, kScoreGradientBytes / of_group);
  if (groups < c.kv_heads) {
    for (size_t i = 0; i < tiles.size(); ++i) {
      for (int64_t g = 0; g < c.kv_heads; g += groups) {
        backward(in, out, tiles.subspan(i, 1), {g, std::min(groups, c.kv_heads - g)}, c);
      }
    }
    return;
  }
  auto most = static_cast<size_t>(groups / c.kv_heads);
  if (!are_dense(tiles)) most = std::bit_floor(most);  // call_of rounds their number up
  const size_t pieces = (tiles.size() + most - 1) / most;
  const size_t each = (tiles.size() + pieces - 1) / pieces;
  for (size_t i = 0; i < tiles.size(); i += each) {
    backward(in, out, tiles.subspan(i, std::min(each, tiles.size() - i)), {0, c.kv_heads}, c);
  }
}

void backward(const AttentionBackward& in, const AttentionGradients& out, Tiles tiles,
              const AttentionConfig& c) {
  if (!c.deterministic) return backward(in, out, tiles, {0, c.kv_heads}, c);
  if (are_dense(tiles)) return backward_in_pieces(in, out, tiles, c);
  // By power of two: the gradients of scores are as many for each sequence of a call as for its longest.
  const auto size_class = [](const AttentionTile& t) {
    return std::bit_width(static_cast<uint64_t>(std::max({t.queries, t.keys, kDenseRows}) - 1));
  };
  PooledVector<AttentionTile> sorted(tiles.begin(), tiles.end());
  std::ranges::stable_sort(sorted, {}, size_class);
  for (Tiles left = sorted; !left.empty();) {
    const auto end = std::ranges::upper_bound(left, size_class(left[0]), {}, size_class);
    const auto n = static_cast<size_t>(end - left.begin());
    backward_in_pieces(in, out, left.first(n), c);
    left = left.subspan(n);
  }
}

// The rows that tiles lie in, and the tiles counted from there.
struct Hull {
  RowRun queries;
  RowRun keys;
  bool all_queries = false;  // each of the rows is in a tile
  bool all_keys = false;
  PooledVector<AttentionTile> tiles;

  explicit Hull(Tiles of) : tiles(of.begin(), of.end()) {
    queries = keys = {INT64_MAX, 0};
    int64_t query_rows = 0;
    int64_t key_rows = 0;
    const auto widen = [](RowRun& run, int64_t first, int64_t rows) {
      run = {std::min(run.begin, first), std::max(run.end, first + rows)};
    };
    for (const AttentionTile& t : of) {
      widen(queries, t.first_query, t.queries);
      widen(keys, t.first_key, t.keys);
      query_rows += t.queries;
      key_rows += t.keys;
    }
    all_queries = query_rows == queries.rows();
    all_keys = key_rows == keys.rows();
    for (AttentionTile& t : tiles) {
      t.first_query -= queries.begin;
      t.first_key -= keys.begin;
    }
  }

  Tensor queries_of(const Tensor& t) const { return t.slice(queries.begin, queries.end); }
  Tensor keys_of(const Tensor& t) const { return t.slice(keys.begin, keys.end); }
  Attended queries_of(const Attended& a) const { return {queries_of(a.y_THd), queries_of(a.log_sum_exp_TH)}; }
};

Tensor part_like(const Tensor& t, bool all_rows) {
  return all_rows ? Tensor::empty(t.shape(), DType::bf16, t.device())
                  : Tensor::zeros(t.shape(), DType::bf16, t.device());
}

}  // namespace

void attention_bf16(const std::array<Tensor, 3>& q_k_v, const Attended& out, Tiles tiles, bool adds,
                    const AttentionConfig& c) {
  check_supported(c, false);
  if (tiles.empty()) return;
  if (!adds) return forward(q_k_v, out, tiles, c);
  const Hull hull(tiles);
  const std::array<Tensor, 3> in = {hull.queries_of(q_k_v[0]), hull.keys_of(q_k_v[1]),
                                    hull.keys_of(q_k_v[2])};
  const Attended sums = hull.queries_of(out);
  const Attended part = {part_like(sums.y_THd, true),
                         Tensor::empty(sums.log_sum_exp_TH.shape(), DType::f32, in[0].device())};
  if (!hull.all_queries) fill_infinity(part.log_sum_exp_TH);
  forward(in, part, hull.tiles, c);
  merge_attended(sums, part, c.values());
}

void attention_backward_bf16(const AttentionBackward& all, const AttentionGradients& out, Tiles tiles,
                             bool adds, const AttentionConfig& c) {
  check_supported(c, true);
  if (tiles.empty()) return;
  if (!adds) return backward(all, out, tiles, c);
  const Hull hull(tiles);
  const AttentionBackward in = {hull.queries_of(all.dy_THd), hull.queries_of(all.q_THd),
                                hull.keys_of(all.k_SGd), hull.keys_of(all.v_SGd),
                                hull.queries_of(all.forward)};
  const AttentionGradients part = {part_like(in.q_THd, hull.all_queries), part_like(in.k_SGd, hull.all_keys),
                                   part_like(in.v_SGd, hull.all_keys)};
  backward(in, part, hull.tiles, c);
  add_part_into(hull.queries_of(out.dq_THd), part.dq_THd);
  add_part_into(hull.keys_of(out.dk_TGd), part.dk_TGd);
  add_part_into(hull.keys_of(out.dv_TGd), part.dv_TGd);
}

}  // namespace phalanx::cuda
