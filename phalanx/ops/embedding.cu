#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx::cuda {
namespace {

// Where tokens' rows are: in a table of `rows`, the first of which is that of token `first`.
struct Part {
  int64_t first;
  int64_t rows;
  int64_t vocabulary;
  Fault* fault;

  Part(VocabularyPart part, const Tensor& table)
      : first(part.first),
        rows(table.rows()),
        vocabulary(part.vocabulary(table.rows())),
        fault(current_stream().fault()) {}

  // −1: not here; a report, when it is nowhere.
  __device__ int64_t row_of(int32_t token, bool reports) const {
    if (reports && (token < 0 || token >= vocabulary)) report(fault, FaultKind::token, token, vocabulary);
    const int64_t row = token - first;
    return token >= 0 && token < vocabulary && row >= 0 && row < rows ? row : -1;
  }
};

// One team a token.
template <class T, int N>
__global__ void pick(const T* __restrict__ table, const int32_t* tokens, T* __restrict__ y, int64_t count,
                     int64_t width, Part part) {
  const int64_t t = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (t >= count) return;
  const int64_t row = part.row_of(tokens[t], threadIdx.x == 0);
#pragma unroll kInFlight
  for (int64_t i = int64_t{threadIdx.x} * N; i < width; i += int64_t{blockDim.x} * N) {
    store(y + t * width + i, row >= 0 ? load<T, N>(table + row * width + i) : Pack<T, N>{});
  }
}

// What is sorted: positions by row of the table. Tokens that have none here get the key behind all others.
__global__ void number(const int32_t* tokens, uint32_t* keys, int32_t* positions, int32_t count, Part part) {
  const int32_t t = blockIdx.x * blockDim.x + threadIdx.x;
  if (t >= count) return;
  const int64_t row = part.row_of(tokens[t], true);
  keys[t] = static_cast<uint32_t>(row >= 0 ? row : part.rows);
  positions[t] = t;
}

template <class T, class G>
struct SumArguments {
  const T* dy;
  G* dtable;
  const uint32_t* keys;      // ascending
  const int32_t* positions;  // of one key: ascending
  int32_t count;
  uint32_t rows;  // of the table
  int64_t width;
};

// A block of x for each sorted position, of which the first of each token does the token's whole sum, in
// token order: no atomics, and the bits of the CPU. y: columns.
template <class T, class G, int N>
__global__ void add_rows(SumArguments<T, G> a) {
  const int32_t first = static_cast<int32_t>(blockIdx.x);
  const uint32_t key = a.keys[first];
  if (key == a.rows || (first > 0 && a.keys[first - 1] == key)) return;
  const int64_t i = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * N;
  if (i >= a.width) return;
  G* const to = a.dtable + key * a.width + i;
  const auto before = load<G, N>(to);
  Pack<Arithmetic<G>, N> sum;
  for (int k = 0; k < N; ++k) sum.v[k] = widen(before.v[k]);
  const auto row = [&](int32_t j) { return load<T, N>(a.dy + a.positions[j] * a.width + i); };
  const auto add = [&](const Pack<T, N>& g) {
    for (int k = 0; k < N; ++k) sum.v[k] += static_cast<Arithmetic<G>>(widen(g.v[k]));
  };
  int32_t j = first;
  constexpr int kAhead = 8;  // rows in flight
  for (; j + kAhead <= a.count && a.keys[j + kAhead - 1] == key; j += kAhead) {
    Pack<T, N> rows[kAhead];
    for (int k = 0; k < kAhead; ++k) rows[k] = row(j + k);
    for (int k = 0; k < kAhead; ++k) add(rows[k]);
  }
  for (; j < a.count && a.keys[j] == key; ++j) add(row(j));
  Pack<G, N> after;
  for (int k = 0; k < N; ++k) after.v[k] = narrow<G>(sum.v[k]);
  store(to, after);
}

struct Sorted {
  Tensor keys;
  Tensor positions;
};

// The positions of tokens, those of equal tokens in order.
Sorted sort_by_token(const Tensor& tokens, const Part& part) {
  Stream& stream = current_stream();
  const auto count = static_cast<int32_t>(tokens.numel());
  const auto indices = [&] { return Tensor::empty({count}, DType::i32, tokens.device()); };
  const auto keys_of = [](const Tensor& t) { return reinterpret_cast<uint32_t*>(t.device_data<int32_t>()); };
  const Tensor keys = indices();
  const Tensor positions = indices();
  const Sorted out = {indices(), indices()};
  number<<<blocks_for(count, 256), 256, 0, stream.native()>>>(tokens.device_data<int32_t>(), keys_of(keys),
                                                              positions.device_data<int32_t>(), count, part);
  check_launch("embedding_backward");
  const int bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(part.rows)));
  const auto sort = [&](void* scratch, size_t& bytes) {
    check(cub::DeviceRadixSort::SortPairs(
              scratch, bytes, keys_of(keys), keys_of(out.keys), positions.device_data<int32_t>(),
              out.positions.device_data<int32_t>(), count, 0, bits, stream.native()),
          "embedding_backward");
  };
  size_t bytes = 0;
  sort(nullptr, bytes);
  const Tensor scratch = Tensor::empty({static_cast<int64_t>(bytes)}, DType::u8, tokens.device());
  sort(scratch.address(), bytes);
  return out;
}

}  // namespace

Tensor embedding(const Tensor& table, const Tensor& tokens, VocabularyPart part) {
  const int64_t width = table.dim(1);
  const Tensor y = Tensor::empty({tokens.rows(), width}, table.dtype(), table.device());
  if (y.numel() == 0) return y;
  visit_stored(y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(width, {&table, &y}, [&](auto n) {
      const dim3 threads = row_threads(width / n);
      pick<T, n><<<blocks_for(tokens.rows(), threads.y), threads, 0, current_stream().native()>>>(
          table.device_data<T>(), tokens.device_data<int32_t>(), y.device_data<T>(), tokens.rows(), width,
          Part(part, table));
      check_launch("embedding");
    });
  });
  return y;
}

void embedding_backward_into(const Tensor& dtable, const Tensor& dy, const Tensor& tokens,
                             VocabularyPart part) {
  const int64_t width = dtable.dim(1);
  PHX_CHECK(tokens.numel() < INT32_MAX && dtable.rows() < INT32_MAX, "{} tokens of a vocabulary of {}",
            tokens.numel(), dtable.rows());
  if (dy.numel() == 0 || dtable.numel() == 0) return;
  const Sorted sorted = sort_by_token(tokens, Part(part, dtable));
  visit_stored(dy.dtype(), [&](auto zero) {
    using T = decltype(zero);
    visit_sum<T>(dtable.dtype(), [&](auto sum) {
      using G = decltype(sum);
      with_pack<T>(width, {&dtable, &dy}, [&](auto n) {
        const SumArguments<T, G> a = {
            .dy = dy.device_data<T>(),
            .dtable = dtable.device_data<G>(),
            .keys = reinterpret_cast<const uint32_t*>(sorted.keys.device_data<int32_t>()),
            .positions = sorted.positions.device_data<int32_t>(),
            .count = static_cast<int32_t>(tokens.numel()),
            .rows = static_cast<uint32_t>(dtable.rows()),
            .width = width};
        const unsigned threads = std::min(row_threads(width / n).x, 128u);
        const dim3 blocks(static_cast<unsigned>(a.count), blocks_for(width / n, threads));
        add_rows<T, G, n><<<blocks, threads, 0, current_stream().native()>>>(a);
        check_launch("embedding_backward");
      });
    });
  });
}

}  // namespace phalanx::cuda
