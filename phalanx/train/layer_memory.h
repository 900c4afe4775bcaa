// What one layer of a training step holds, in bytes, from the config alone.
#pragma once

#include <algorithm>

#include "phalanx/comm/mesh.h"
#include "phalanx/model/config.h"
#include "phalanx/parallel/tensor_parallel.h"
#include "phalanx/tensor/dtype.h"
#include "phalanx/tensor/size_class.h"

namespace phalanx {

/// What one branch of a block (norm and layer) holds.
struct BranchMemory {
  int64_t saved = 0;  // by the tape, from forward to backward
  int64_t working =
      0;  // beside it, at most, in backward: gradients, and what is saved less what is dropped by then
  int64_t deferred = 0;   // by weight-gradient work that backward puts off
  int64_t undropped = 0;  // of `saved`, counted as dropped in `working`, but kept by deferred work
};

/// One rank's layers, on a slice that sees those before it.
class LayerMemory {
 public:
  LayerMemory(const ModelConfig& model, DType dtype, int64_t tokens, int slices, const Layout& layout,
              const StreamConfig& stream, int ulysses)
      : c_(model),
        item_(static_cast<int64_t>(dtype_size(dtype))),
        slices_(slices),
        t_(tokens),
        own_(tokens / layout.tp),
        tp_(layout.tp),
        ulysses_(ulysses),
        ring_(layout.cp / ulysses),
        ep_(layout.ep),
        etp_(layout.etp),
        sequence_(stream.sequence && layout.tp > 1),
        overlap_(stream.overlap && layout.tp > 1) {}

  int slices() const { return slices_; }
  /// The same with the loss made of so many rows at once (Pass::loss_rows).
  LayerMemory with_loss_rows(int64_t rows) const {
    LayerMemory layers = *this;
    layers.loss_rows_ = rows;
    return layers;
  }
  /// The same with every rank's rows on all ranks of ep (ep/gathering.h).
  LayerMemory with_gathering(bool gathers) const {
    LayerMemory layers = *this;
    layers.gathers_ = gathers;
    return layers;
  }
  /// The same for the slice of that number.
  LayerMemory at_slice(int slice) const {
    LayerMemory layers = *this;
    layers.slice_ = slice;
    return layers;
  }

  /// Bytes of a block for so many elements, of the compute dtype or of `item` bytes.
  int64_t block(int64_t elements) const { return block(elements, item_); }
  static int64_t block(int64_t elements, int64_t item) {
    return static_cast<int64_t>(size_class(static_cast<size_t>(elements * item)).bytes);
  }

  /// The stream's rows, [T, D] or [T/tp, D].
  int64_t x() const { return block(stream_rows() * c_.width); }
  /// All rows, where a layer gathers them.
  int64_t gathered() const { return sequence_ ? block(t_ * c_.width) : 0; }
  /// A sum of all rows' gradients, of which the own ones are left; in chunks the gathered input is still
  /// here.
  int64_t reducing() const { return sequence_ ? gathered() + (overlap_ ? gathered() : x()) : 0; }
  /// A layer's input as its weight gradients need it.
  int64_t normed() const { return sequence_ ? gathered() : x(); }
  /// A norm saves its input and statistics; what it gives is saved by the layer behind it.
  int64_t norm() const { return x() + (c_.norm == NormKind::layernorm ? 2 : 1) * block(stream_rows()); }

  /// One slice's k and v inside attention, of the heads that the rank has there: Ulysses may share heads.
  int64_t kv() const;
  /// Their gradients, which several parts sum where there are slices or a ring: over bf16 in f32.
  int64_t kv_gradients() const { return sums_apart() ? 2 * kv() : kv(); }
  /// What the last slice's backward leaves of a layer: gradients of the k and v of all slices before it.
  int64_t first_given() const { return slice_ + 1 == slices_ ? slice_ * kv_gradients() : 0; }
  /// What recomputation cannot drop: later slices see k and v.
  int64_t kept_for_later() const { return slices_ > 1 ? kv() : 0; }

  BranchMemory attention() const;

  BranchMemory mlp(int layer) const;

  /// Final norm, output head and loss: norm's, normed, logits and their log-sum-exp. Logits become their own
  /// gradient, which lives through the whole backward; where the loss is made of some rows at once, logits go
  /// before it, and the normed rows' gradient stays.
  bool by_rows() const { return loss_rows_ > 0 && tp_ == 1; }
  int64_t logits() const {
    const int64_t rows = by_rows() ? std::min(t_, loss_rows_) : t_;
    return block(rows * ((c_.vocabulary + tp_ - 1) / tp_)) + block(2 * rows);
  }
  int64_t head() const { return norm() + x() + (by_rows() ? 0 : logits()); }
  /// Before the block of a depth of multi-token prediction, both norms; one's input the head before has
  /// saved.
  int64_t mtp_entry() const { return 2 * norm() + x(); }

 private:
  int64_t stream_rows() const { return sequence_ ? own_ : t_; }

  // Rows of the longest sequence, or part of one, that attention sees at once.
  int64_t longest_square() const {
    const int64_t length = c_.context / slices_;
    return ring_ == 1 ? length : std::min(length, t_ * ulysses_ / 2);
  }
  // Slices whose k and v attention has at once.
  int seen() const { return slice_ + 1; }
  // Blocks of k and v, or of their gradients, that backward holds beside the rank's own: of another rank, the
  // next one, and gradients that leave and arrive.
  int travelling() const { return ring_ == 1 ? 0 : ring_ == 2 ? 3 : 4; }
  // Of those and the own one, gradients.
  int gradients() const { return ring_ == 1 ? 1 : 3; }
  // Attention's gradients are summed in another dtype than the one computed in.
  bool sums_apart() const { return item_ == 2 && (ring_ > 1 || slices_ > 1); }
  // What such sums take more, beside q's of so many bytes.
  int64_t wide_sums(int64_t q) const { return sums_apart() ? q + gradients() * seen() * kv() : 0; }

  // With dropout, a branch's dy is not the residual's.
  int64_t dropped() const { return c_.dropout > 0 ? x() : 0; }

  // The two products of a dense MLP, without its input and output: h (gate and up) and the activation a.
  BranchMemory dense(int64_t width, bool gated) const;

  // Multi-head latent attention.
  BranchMemory mla() const;

  // How many ranks of ep a token is sent to: all, or as many as if all sets of K experts are alike.
  double ranks_of_token() const;

  BranchMemory moe() const;

  const ModelConfig& c_;
  int64_t item_;
  int slices_;
  int slice_ = 0;
  int64_t loss_rows_ = 0;
  int64_t t_;    // rows inside a layer
  int64_t own_;  // of them this rank's
  int tp_;
  int ulysses_;
  int ring_;
  int64_t ep_;
  int64_t etp_;
  bool sequence_;
  bool overlap_;
  bool gathers_ = false;
};

}  // namespace phalanx
