// Dense linear layers.
#pragma once

#include <array>
#include <string>

#include "phalanx/model/layer.h"
#include "phalanx/ops/gelu_linear.h"
#include "phalanx/ops/linear_products.h"

namespace phalanx {

/// Which features of a linear are cut over tp. outputs: W by rows, and the bias; each rank computes some
/// outputs of all inputs. inputs: W by columns; each rank has some inputs and computes a summand of all
/// outputs. (Megatron's column- and row-parallel: its weights are the transposed.) none: every rank has W
/// whole and computes all outputs of the stream's rows.
enum class Cut : uint8_t { outputs, inputs, none };

struct LinearConfig {
  int64_t in = 0;  ///< of the whole layer
  int64_t out = 0;
  Cut cut = Cut::outputs;
  int parts = 0;    ///< of the outputs: fewer than tp where ranks share them; 0: tp
  int stacked = 1;  ///< so many layers of the same input in one, each with `out` outputs; all of them are cut
  bool bias = false;
  double init_std = 0.02;
};

/// y = x Wᵀ + b. Parameters NAME.w [out, in] and, if asked for, NAME.b [out]; stacked: [stacked, out, in] and
/// [stacked, out]. Where the store's products are in FP8, so are this layer's three (ops/linear_products.h);
/// what comes and goes is not.
///
/// Error: in FP8, features whose blocks of 128 tp would cut, or that are not multiples of kTermPad.
class Linear {
 public:
  Linear(const Builder& build, const std::string& name, const LinearConfig& config);
  /// x as forward and backward take it, and a layer keeps it.
  LinearRows rows(Tensor x) const;
  /// x [T, in / tp] → the stream [·, out] (inputs cut: summed over tp, then the bias once); or the stream
  /// [·, in] → its rows [·, out] (none cut). Plus `also`, of that shape, which may be empty.
  Task<Tensor> forward(LinearRows x, Tensor also = {});
  /// The gradient of x, given the forward's x; with none cut and a `sum`, it is added to that.
  Task<Tensor> backward(Tensor dy, LinearRows x, Tape& tape, Tensor sum = {});
  /// With inputs cut, where the forward's x was gelu(h): the gradient of h.
  Task<Tensor> backward_gelu(Tensor dy, Tensor h, LinearRows x, Gelu kind, Tape& tape);

 private:
  template <size_t N>
  friend class GatheredLinears;

  template <class Multiply>
  Task<Tensor> backward_of_cut(Tensor dy, LinearRows x, Tape& tape, Multiply multiply);
  Task<> bias_into(Tensor y);
  // dy as backward's products take it.
  LinearGradient gradient(const Tensor& dy) const;
  // `dy_stream` for the bias: with inputs cut it has the stream's rows.
  void defer_gradients(LinearGradient dy, const Tensor& dy_stream, LinearRows x, Tape& tape);

  TensorParallel& tensor_;
  Products products_;
  Cut cut_;
  Parameter& w_;
  Parameter* b_;  // or null
};

/// Linears with outputs cut (q, k and v, say) of one stream, whose rows are gathered once for all of them.
template <size_t N>
class GatheredLinears {
 public:
  GatheredLinears(const Builder& build, std::array<Linear, N> linears)
      : tensor_(build.tensor), products_(build.store.products()), linears_(std::move(linears)) {}
  /// x as forward and backward take it, and a layer keeps it.
  LinearRows rows(Tensor x) const;
  /// Whether it norms rows that come with a norm: where products are not in FP8.
  bool norms() const { return products_ == Products::same; }
  /// The stream [·, in], normed at first if `norm` has weights → of each linear all rows
  /// [T, stacked · out / tp].
  Task<std::array<Tensor, N>> forward(LinearRows x, RowNorm norm = {});
  /// The same of one linear, and its GELU.
  Task<GeluRows> forward_gelu(LinearRows x, Gelu kind) requires(N == 1);
  /// Of one linear with gates stacked before what they gate: SwiGLU's result. Nothing is kept.
  Task<Tensor> forward_swiglu(LinearRows x, RowNorm norm) requires(N == 1);
  /// The gradient of the stream, given the forward's x.
  Task<Tensor> backward(std::array<Tensor, N> dy, LinearRows x, Tape& tape);

 private:
  enum class Direction : uint8_t { forward, backward };
  struct Weights {
    PooledVector<Lease> leases;
    PooledVector<LinearWeight> products;
    std::array<Tensor, N> matrices;
    std::array<Tensor, N> biases;  // undefined where there is none
  };
  Task<Weights> weights(Direction direction);
  // All rows of what rows() gave: one chunk where it has them.
  GatherChunks gather(const LinearRows& x) const;
  // What backward keeps of x once all rows are there.
  void defer_gradients(const std::array<LinearGradient, N>& products, const std::array<Tensor, N>& dy,
                       const LinearRows& all, Tape& tape);

  TensorParallel& tensor_;
  Products products_;
  std::array<Linear, N> linears_;
};

}  // namespace phalanx
