#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx::cuda {
namespace {

// A team of threads for each row of tokens, whose slots it serves: so the row is read, or written, once.
//
// Slots that are under way at once.
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
  const T* dy;                   // of backward, [capacity, width]
  const Arithmetic<T>* weights;  // or null
  T* y;                          // [capacity, width]
  T* drows;                      // of backward, in expert order
  Arithmetic<T>* dweights;       // of backward
  const int64_t* places;         // [capacity, top_k]
  const int64_t* live;
  int64_t capacity;
  int64_t width;
  int64_t top_k;
  Fault* fault;
};

// Packs of up to kSlots slots' rows, loaded together; of those that name none, zeros.
template <class T, int N>
struct SlotPacks {
  int64_t places[kSlots];
  Pack<T, N> packs[kSlots];

  __device__ SlotPacks(const Arguments<T>& a, int64_t r, int64_t first, int64_t i) {
#pragma unroll
    for (int k = 0; k < kSlots; ++k) {
      places[k] = first + k < a.top_k ? a.places[r * a.top_k + first + k] : -1;
    }
#pragma unroll
    for (int k = 0; k < kSlots; ++k) {
      packs[k] = places[k] < 0 ? Pack<T, N>{} : load<T, N>(a.rows + places[k] * a.width + i);
    }
  }
};

template <class T, int N>
__global__ void __launch_bounds__(kMostThreads) combine_kernel(Arguments<T> a) {
  using A = Arithmetic<T>;
  const int64_t rows = live_rows(a.live, a.capacity, a.fault);
  const int64_t r = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (r >= rows) return;
  for (int64_t i = int64_t{threadIdx.x} * N; i < a.width; i += int64_t{blockDim.x} * N) {
    A sum[N] = {};
    for (int64_t first = 0; first < a.top_k; first += kSlots) {
      const SlotPacks<T, N> in(a, r, first, i);
#pragma unroll
      for (int k = 0; k < kSlots; ++k) {
        if (in.places[k] < 0) continue;
        const A w = a.weights ? a.weights[r * a.top_k + first + k] : A(1);
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] = fma(w, widen(in.packs[k].v[j]), sum[j]);
      }
    }
    Pack<T, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = narrow<T>(sum[j]);
    store(a.y + r * a.width + i, out);
  }
}

// Of each slot of a row: drow = w · dy, dw = dy · row.
template <class T, int N>
__global__ void __launch_bounds__(kMostThreads) backward_kernel(Arguments<T> a) {
  using A = Arithmetic<T>;
  __shared__ TeamScratch scratch;
  const int64_t rows = live_rows(a.live, a.capacity, a.fault);
  const int64_t r = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const int64_t end = r < rows ? a.width : 0;
  for (int64_t first = 0; first < a.top_k; first += kSlots) {
    A dots[kSlots] = {};
    for (int64_t i = int64_t{threadIdx.x} * N; i < end; i += int64_t{blockDim.x} * N) {
      const auto g = load<T, N>(a.dy + r * a.width + i);
      const SlotPacks<T, N> in(a, r, first, i);
#pragma unroll
      for (int k = 0; k < kSlots; ++k) {
        if (in.places[k] < 0) continue;
        const A w = a.weights[r * a.top_k + first + k];
        Pack<T, N> out;
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const A gj = widen(g.v[j]);
          out.v[j] = narrow<T>(w * gj);
          dots[k] = fma(gj, widen(in.packs[k].v[j]), dots[k]);
        }
        store(a.drows + in.places[k] * a.width + i, out);
      }
    }
    for (int64_t k = first; k < a.top_k && k < first + kSlots; ++k) {
      double dot = 0;
#pragma unroll
      for (int j = 0; j < kSlots; ++j) dot = j == k - first ? static_cast<double>(dots[j]) : dot;
      dot = team_reduce(dot, scratch, Sum{});
      if (end > 0 && threadIdx.x == 0) a.dweights[r * a.top_k + k] = static_cast<A>(dot);
    }
  }
}

template <class T>
Arguments<T> arguments_of(const Rows& rows, const ExpertOrder& order, const Tensor& weights,
                          const Rows& tokens) {
  return {.rows = rows.data.device_data<T>(),
          .dy = nullptr,
          .weights = weights.defined() ? weights.device_data<Arithmetic<T>>() : nullptr,
          .y = nullptr,
          .drows = nullptr,
          .dweights = nullptr,
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
      combine_kernel<T, n><<<blocks_for(a.capacity, threads.y), threads, 0, current_stream().native()>>>(a);
    });
  });
  check_launch("unpermute");
  return y;
}

UnpermuteGradients unpermute_backward(const Rows& dy, const Rows& rows, const ExpertOrder& order,
                                      const Tensor& weights) {
  const int64_t width = rows.data.dim(1);
  const UnpermuteGradients out = {rows_like(rows, rows.data.shape(), rows.data.dtype()),
                                  Tensor::zeros(weights.shape(), weights.dtype(), weights.device())};
  if (rows.data.numel() == 0) return out;
  visit_stored(rows.data.dtype(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(width, {&rows.data, &dy.data, &out.rows.data}, [&](auto n) {
      Arguments<T> a = arguments_of<T>(rows, order, weights, dy);
      a.dy = dy.data.device_data<T>();
      a.drows = out.rows.data.device_data<T>();
      a.dweights = out.weights_RK.device_data<Arithmetic<T>>();
      const dim3 threads = row_threads(width / n);
      backward_kernel<T, n><<<blocks_for(a.capacity, threads.y), threads, 0, current_stream().native()>>>(a);
    });
  });
  check_launch("unpermute_backward");
  return out;
}

}  // namespace phalanx::cuda
