#include <cstring>

#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx::cuda {
namespace {

// A team of threads for each row of tokens, whose slots it serves: so the row is read, or written, once.
//
// Slots whose rows the combine has under way at once, at most.
constexpr int kSlots = 8;

struct PermuteArguments {
  const std::byte* x;
  std::byte* y;
  const int64_t* places;
  const int64_t* live;
  int64_t capacity;
  int64_t width;  // of a row, in accesses
  int64_t top_k;
  Fault* fault;
};

// U: what one access moves.
template <class U>
__global__ void __launch_bounds__(kMostThreads) permute_kernel(PermuteArguments a) {
  const int64_t rows = live_rows(a.live, a.capacity, a.fault);
  const int64_t r = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (r >= rows) return;
  const U* const x = reinterpret_cast<const U*>(a.x) + r * a.width;
  U* const y = reinterpret_cast<U*>(a.y);
  const int64_t* const places = a.places + r * a.top_k;
  for (int64_t i = threadIdx.x; i < a.width; i += int64_t{blockDim.x} * kInFlight) {
    U unit[kInFlight];
#pragma unroll
    for (int p = 0; p < kInFlight; ++p) {
      const int64_t at = i + int64_t{p} * blockDim.x;
      if (at < a.width) unit[p] = x[at];
    }
    for (int64_t k = 0; k < a.top_k; ++k) {
      const int64_t place = places[k];
      if (place < 0) continue;
      U* const to = y + place * a.width;
#pragma unroll
      for (int p = 0; p < kInFlight; ++p) {
        const int64_t at = i + int64_t{p} * blockDim.x;
        if (at < a.width) to[at] = unit[p];
      }
    }
  }
}

// Calls f(U{}) with the largest access, of 16 bytes or an element, that rows of both tensors allow.
template <class F>
void with_unit(int64_t row_bytes, const Tensor& x, const Tensor& y, F&& f) {
  const auto aligned = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.address()) % 16 == 0; };
  if (row_bytes % 16 == 0 && aligned(x) && aligned(y)) return f(uint4{});
  switch (dtype_size(x.dtype())) {
    case 1:
      return f(uint8_t{});
    case 2:
      return f(uint16_t{});
    case 4:
      return f(uint32_t{});
    default:
      return f(uint64_t{});
  }
}

template <class T>
struct Arguments {
  const T* rows;                 // in expert order
  const Arithmetic<T>* weights;  // or null
  T* y;                          // [capacity, width]
  const int64_t* places;         // [capacity, top_k]
  const int64_t* live;
  int64_t capacity;
  int64_t width;
  int64_t top_k;
  Fault* fault;
};

// Packs of up to S slots' rows, loaded together. A slot that names none has the first row's: were its load
// a matter of a condition, it would be made where the pack is used, one after another.
template <class T, int N, int S>
struct SlotPacks {
  int64_t places[S];
  Arithmetic<T> weights[S];
  Pack<T, N> packs[S];

  __device__ SlotPacks(const Arguments<T>& a, int64_t r, int64_t first, int64_t i) {
#pragma unroll
    for (int k = 0; k < S; ++k) {
      const int64_t slot = r * a.top_k + first + k;
      const bool there = first + k < a.top_k;
      places[k] = there ? a.places[slot] : -1;
      weights[k] = there && a.weights ? a.weights[slot] : Arithmetic<T>(1);
    }
#pragma unroll
    for (int k = 0; k < S; ++k) {
      packs[k] = load<T, N>(a.rows + (places[k] < 0 ? 0 : places[k]) * a.width + i);
    }
  }
};

template <class T, int N, int S>
__global__ void __launch_bounds__(kMostThreads) combine_kernel(Arguments<T> a) {
  using A = Arithmetic<T>;
  const int64_t rows = live_rows(a.live, a.capacity, a.fault);
  const int64_t r = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (r >= rows) return;
  for (int64_t i = int64_t{threadIdx.x} * N; i < a.width; i += int64_t{blockDim.x} * N) {
    A sum[N] = {};
    for (int64_t first = 0; first < a.top_k; first += S) {
      const SlotPacks<T, N, S> in(a, r, first, i);
#pragma unroll
      for (int k = 0; k < S; ++k) {
        if (in.places[k] < 0) continue;
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] = fma(in.weights[k], widen(in.packs[k].v[j]), sum[j]);
      }
    }
    Pack<T, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = narrow<T>(sum[j]);
    store(a.y + r * a.width + i, out);
  }
}

// Calls f(integral_constant S) with the slots whose rows to load at once: a power of 2, `most` at most.
template <int most, class F>
void with_slots(int64_t top_k, F&& f) {
  if (top_k <= 2) return f(std::integral_constant<int, 2>());
  if (top_k <= 4 || most == 4) return f(std::integral_constant<int, 4>());
  f(std::integral_constant<int, most>());
}

template <class T>
Arguments<T> arguments_of(const Rows& rows, const ExpertOrder& order, const Tensor& weights,
                          const Rows& tokens) {
  return {.rows = rows.data.device_data<T>(),
          .weights = weights.defined() ? weights.device_data<Arithmetic<T>>() : nullptr,
          .y = nullptr,
          .places = order.places.device_data<int64_t>(),
          .live = tokens.live.device_data<int64_t>(),
          .capacity = tokens.capacity(),
          .width = rows.data.dim(1),
          .top_k = order.places.dim(1),
          .fault = current_stream().fault()};
}

}  // namespace

Rows permute(const Rows& x, const ExpertOrder& order) {
  const Rows y = {
      Tensor::empty(x.data.shape().with_rows(order.slots.rows()), x.data.dtype(), x.data.device()),
      order.live};
  if (y.data.numel() == 0) return y;
  const auto row_bytes = static_cast<int64_t>(x.data.bytes()) / x.capacity();
  with_unit(row_bytes, x.data, y.data, [&](auto unit) {
    using U = decltype(unit);
    const PermuteArguments a = {.x = x.data.address(),
                                .y = y.data.address(),
                                .places = order.places.device_data<int64_t>(),
                                .live = x.live.device_data<int64_t>(),
                                .capacity = x.capacity(),
                                .width = row_bytes / int64_t{sizeof(U)},
                                .top_k = order.places.dim(1),
                                .fault = current_stream().fault()};
    const dim3 threads = row_threads(a.width);
    permute_kernel<U><<<blocks_for(a.capacity, threads.y), threads, 0, current_stream().native()>>>(a);
  });
  check_launch("permute");
  return y;
}

Rows unpermute(const Rows& rows, const ExpertOrder& order, const Tensor& weights, const Rows& like) {
  const int64_t width = rows.data.dim(1);
  const Rows y = rows_like(like, {0, width}, rows.data.dtype());
  if (y.data.numel() == 0) return y;
  visit_stored(rows.data.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(width, {&rows.data, &y.data}, [&](auto n) {
      Arguments<T> a = arguments_of<T>(rows, order, weights, like);
      a.y = y.data.device_data<T>();
      const dim3 threads = row_threads(width / n);
      with_slots<kSlots>(a.top_k, [&](auto s) {
        combine_kernel<T, n, s>
            <<<blocks_for(a.capacity, threads.y), threads, 0, current_stream().native()>>>(a);
      });
    });
  });
  check_launch("unpermute");
  return y;
}

}  // namespace phalanx::cuda
