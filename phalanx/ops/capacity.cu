#include <bit>
#include <cmath>
#include <cub/device/device_radix_sort.cuh>

#include "phalanx/ops/cuda_ops.h"
#include "phalanx/ops/expert_rows.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void count_up(int32_t* to, int32_t count) {
  const int32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) to[i] = i;
}

struct Arguments {
  const int64_t* idx;      // [rows, top_k]
  const int64_t* numbers;  // ascending
  const int32_t* row_of;   // of each number: where it stands
  const int64_t* offsets;  // [sequences + 1]
  const int64_t* most;     // of a sequence: what an expert takes
  int64_t* taken;          // [sequences, experts]
  int64_t* kept;           // [rows, top_k]
  int64_t sequences;
  int64_t experts;
  int32_t rows;
  int32_t top_k;
  uint32_t none;  // the key of a choice that is none: behind all others
  Fault* fault;
};

// The sequence of the t-th token by number.
__device__ int64_t sequence_of(const Arguments& a, int64_t t) {
  int64_t low = 0;
  for (int64_t high = a.sequences; high - low > 1;) {
    const int64_t middle = (low + high) / 2;
    (a.offsets[middle] <= t ? low : high) = middle;
  }
  return low;
}

// Of each choice, tokens by number: sequence · experts + expert, and where it stands in idx.
__global__ void name_choices(Arguments a, uint32_t* keys, int32_t* places) {
  const int32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= a.rows * a.top_k) return;
  const int32_t t = i / a.top_k;
  if (i % a.top_k == 0 && t > 0 && a.numbers[t] == a.numbers[t - 1]) {
    report(a.fault, FaultKind::same_number, a.numbers[t], 0);
  }
  const int32_t place = a.row_of[t] * a.top_k + i % a.top_k;
  const int64_t e = a.idx[place];
  const bool valid = e >= 0 && e < a.experts;
  if (e < -1 || e >= a.experts) report(a.fault, FaultKind::expert, e, a.experts);
  keys[i] = valid ? static_cast<uint32_t>(sequence_of(a, t) * a.experts + e) : a.none;
  places[i] = place;
}

// The first of the sorted keys that is not below `key`.
__device__ int32_t first_of(const uint32_t* keys, int32_t count, uint32_t key) {
  int32_t low = 0;
  for (int32_t high = count; low < high;) {
    const int32_t middle = low + (high - low) / 2;
    if (keys[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Choices by sequence and expert, those of one in the order of tokens.
__global__ void keep_first(Arguments a, const uint32_t* keys, const int32_t* places) {
  const int32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  const int32_t count = a.rows * a.top_k;
  if (i >= count) return;
  const uint32_t key = keys[i];
  const bool fits = key != a.none && i - first_of(keys, count, key) + a.taken[key] < a.most[key / a.experts];
  a.kept[places[i]] = fits ? static_cast<int64_t>(key % a.experts) : -1;
}

// Afterwards: what each expert was asked for, its last choice adds.
__global__ void add_taken(Arguments a, const uint32_t* keys) {
  const int32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  const int32_t count = a.rows * a.top_k;
  if (i >= count || keys[i] == a.none || (i + 1 < count && keys[i + 1] == keys[i])) return;
  a.taken[keys[i]] += i + 1 - first_of(keys, count, keys[i]);
}

struct Sorted {
  Tensor keys;
  Tensor values;  // i32
};

// Stable. K is what the keys' elements are.
template <class K>
Sorted sort_pairs(const Tensor& keys, const Tensor& values, int bits) {
  const auto count = static_cast<int32_t>(values.numel());
  const Sorted out = {Tensor::empty(keys.shape(), keys.dtype(), keys.device()),
                      Tensor::empty(values.shape(), DType::i32, values.device())};
  const auto sort = [&](void* scratch, size_t& bytes) {
    check(cub::DeviceRadixSort::SortPairs(scratch, bytes, reinterpret_cast<const K*>(keys.address()),
                                          reinterpret_cast<K*>(out.keys.address()),
                                          values.device_data<int32_t>(), out.values.device_data<int32_t>(),
                                          count, 0, bits, current_stream().native()),
          "within_capacity");
  };
  size_t bytes = 0;
  sort(nullptr, bytes);
  const Tensor scratch = Tensor::empty({static_cast<int64_t>(bytes)}, DType::u8, keys.device());
  sort(scratch.address(), bytes);
  return out;
}

// i64 [sequences]: what an expert takes of each.
Tensor room_of(const Tensor& whole_offsets, int64_t top_k, const ExpertRoom& room) {
  const auto whole = whole_offsets.span<const int64_t>();
  const Tensor most = Tensor::empty({std::ssize(whole) - 1}, DType::i64);
  for (size_t b = 0; b + 1 < whole.size(); ++b) {
    most.data<int64_t>()[b] = room_in_sequence(whole[b + 1] - whole[b], top_k, room);
  }
  return most;
}

}  // namespace

Tensor within_capacity(const Tensor& topk_idx, const Tensor& numbers, const Tensor& offsets,
                       const ExpertRoom& room) {
  const Device device = topk_idx.device();
  const int64_t sequences = offsets.numel() - 1;
  PHX_CHECK(topk_idx.numel() < INT32_MAX && sequences * room.experts < UINT32_MAX,
            "{} choices of {} experts in {} sequences", topk_idx.numel(), room.experts, sequences);
  const Tensor kept = Tensor::empty(topk_idx.shape(), DType::i64, device);
  if (topk_idx.numel() == 0) return kept;
  const int64_t top_k = topk_idx.dim(1);
  const Tensor taken =
      room.taken_BE.defined() ? room.taken_BE : Tensor::zeros({sequences, room.experts}, DType::i64, device);
  const Tensor offsets_here = offsets.to(device);
  const Tensor most =
      room_of(room.whole_offsets.defined() ? room.whole_offsets : offsets, top_k, room).to(device);
  Stream& stream = current_stream();
  const auto rows = static_cast<int32_t>(topk_idx.rows());
  const auto choices = static_cast<int32_t>(topk_idx.numel());
  const Tensor in_place = Tensor::empty({rows}, DType::i32, device);
  count_up<<<blocks_for(rows, kThreads), kThreads, 0, stream.native()>>>(in_place.device_data<int32_t>(),
                                                                         rows);
  const Sorted tokens = sort_pairs<int64_t>(numbers.to(device), in_place, 64);
  const Arguments a = {.idx = topk_idx.device_data<int64_t>(),
                       .numbers = tokens.keys.device_data<int64_t>(),
                       .row_of = tokens.values.device_data<int32_t>(),
                       .offsets = offsets_here.device_data<int64_t>(),
                       .most = most.device_data<int64_t>(),
                       .taken = taken.device_data<int64_t>(),
                       .kept = kept.device_data<int64_t>(),
                       .sequences = sequences,
                       .experts = room.experts,
                       .rows = rows,
                       .top_k = static_cast<int32_t>(top_k),
                       .none = static_cast<uint32_t>(sequences * room.experts),
                       .fault = stream.fault()};
  const Tensor names = Tensor::empty({choices}, DType::i32, device);
  const Tensor places = Tensor::empty({choices}, DType::i32, device);
  const auto keys_of = [](const Tensor& t) { return reinterpret_cast<uint32_t*>(t.device_data<int32_t>()); };
  const unsigned blocks = blocks_for(choices, kThreads);
  name_choices<<<blocks, kThreads, 0, stream.native()>>>(a, keys_of(names), places.device_data<int32_t>());
  const Sorted by_expert = sort_pairs<uint32_t>(names, places, static_cast<int>(std::bit_width(a.none)));
  keep_first<<<blocks, kThreads, 0, stream.native()>>>(a, keys_of(by_expert.keys),
                                                       by_expert.values.device_data<int32_t>());
  if (room.taken_BE.defined()) {
    add_taken<<<blocks, kThreads, 0, stream.native()>>>(a, keys_of(by_expert.keys));
  }
  check_launch("within_capacity");
  return kept;
}

}  // namespace phalanx::cuda
