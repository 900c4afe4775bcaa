#include "phalanx/ops/latent_kv.h"

#include <algorithm>

#include "phalanx/base/parallel_for.h"
#include "phalanx/base/trace.h"
#include "phalanx/ops/blocks.h"
#include "phalanx/ops/cuda_ops.h"

namespace phalanx {
namespace {

void check(const Tensor& x, int64_t rows, int64_t columns, const char* name) {
  PHX_CHECK(x.shape() == Shape({rows, columns}), "{} is {}, [{}, {}] is expected", name, x.shape(), rows,
            columns);
}

template <class T>
void expand(const Tensor& kv, const Tensor& k_rope, const KeysAndValues& out, const LatentHeads& s) {
  parallel_for(kv.rows(), block_rows(kv.dim(1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * s.heads; i < end * s.heads; ++i) {
      const T* from = kv.data<const T>() + i * (s.nope + s.values);
      T* k = out.k_THd.data<T>() + i * (s.nope + s.rope);
      std::copy_n(from, s.nope, k);
      std::copy_n(k_rope.data<const T>() + i / s.heads * s.rope, s.rope, k + s.nope);
      std::copy_n(from + s.nope, s.values, out.v_THd.data<T>() + i * s.values);
    }
  });
}

template <class T>
void expand_backward(const Tensor& dk, const Tensor& dv, const LatentGradients& out, const LatentHeads& s) {
  parallel_for(dk.rows(), block_rows(dk.dim(1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * s.heads; i < end * s.heads; ++i) {
      const T* k = dk.data<const T>() + i * (s.nope + s.rope);
      T* to = out.dkv_THd.data<T>() + i * (s.nope + s.values);
      std::copy_n(k, s.nope, to);
      std::copy_n(dv.data<const T>() + i * s.values, s.values, to + s.nope);
      T* sum = out.dk_rope_Td.data<T>() + i / s.heads * s.rope;
      const bool first = i % s.heads == 0;
      for (int64_t c = 0; c < s.rope; ++c) sum[c] = first ? k[s.nope + c] : sum[c] + k[s.nope + c];
    }
  });
}

}  // namespace

KeysAndValues expand_kv(const Tensor& kv, const Tensor& k_rope, const LatentHeads& s) {
  check(kv, kv.rows(), s.heads * (s.nope + s.values), "kv");
  check(k_rope, kv.rows(), s.rope, "k_rope");
  if constexpr (kHaveCuda) {
    if (kv.on_cuda()) return cuda::expand_kv(kv, k_rope, s);
  }
  const KeysAndValues out = {Tensor::empty({kv.rows(), s.heads * (s.nope + s.rope)}, kv.dtype()),
                             Tensor::empty({kv.rows(), s.heads * s.values}, kv.dtype())};
  const TraceSpan span(TraceKind::elementwise, "expand_kv", 2 * out.k_THd.bytes());
  visit_float(kv.dtype(), [&](auto t) { expand<decltype(t)>(kv, k_rope, out, s); });
  return out;
}

LatentGradients expand_kv_backward(const Tensor& dk, const Tensor& dv, const LatentHeads& s) {
  check(dk, dk.rows(), s.heads * (s.nope + s.rope), "dk");
  check(dv, dk.rows(), s.heads * s.values, "dv");
  if constexpr (kHaveCuda) {
    if (dk.on_cuda()) return cuda::expand_kv_backward(dk, dv, s);
  }
  const LatentGradients out = {Tensor::empty({dk.rows(), s.heads * (s.nope + s.values)}, dk.dtype()),
                               Tensor::empty({dk.rows(), s.rope}, dk.dtype())};
  const TraceSpan span(TraceKind::elementwise, "expand_kv_backward", 2 * dk.bytes());
  visit_float(dk.dtype(), [&](auto t) { expand_backward<decltype(t)>(dk, dv, out, s); });
  return out;
}

}  // namespace phalanx
