// What one microbatch's forward saved for its backward, and the weight-gradient work that backward put off.
#pragma once

#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "phalanx/base/pooled.h"
#include "phalanx/base/trace.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// A tape is a tree of scopes: one for each layer, and one for each branch that may run beside another, so
/// that overlapped branches never meet in one stack. Used by one rank; scopes live as long as their root and
/// are reused.
class Tape {
 public:
  Tape() = default;
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  /// The child scope of that name (and index, for a list of layers), made at first use. `name` is a literal.
  Tape& scope(std::string_view name, int index = 0);

  /// Keeps a value (a tensor, or a struct of tensors) for backward, and gives it back for convenience.
  template <class T>
  T save(T value) {
    if (root_->keeping_) saved_.push_back(std::make_unique<Kept<T>>(value));
    return value;
  }
  /// The last value saved in this scope and not yet taken; it must be a T.
  template <class T = Tensor>
  T take() {
    PHX_CHECK(!saved_.empty(), "scope {}[{}]: nothing is saved", name_, index_);
    auto* kept = dynamic_cast<Kept<T>*>(saved_.back().get());
    PHX_CHECK(kept != nullptr, "scope {}[{}]: the last saved value has another type", name_, index_);
    T value = std::move(kept->value);
    saved_.pop_back();
    return value;
  }

  /// Weight-gradient work: runs at once, or, while the root defers, when the root's run_deferred is called.
  template <class F>
  void defer(F work) {
    Tape& root = *root_;
    const TraceLabel label = trace_label();
    if (root.deferring_) {
      root.deferred_.push_back(std::make_unique<Deferred<F>>(std::move(work), label));
    } else {
      const TracePart part(label, TracePhase::weights);
      work();
    }
  }
  /// Off: save keeps nothing (evaluation, decoding).
  void set_keeping(bool on) { root_->keeping_ = on; }
  void set_deferring(bool on) { root_->deferring_ = on; }
  /// Runs what was deferred, first in first out (a schedule's W step).
  void run_deferred();

  /// True when everything saved was taken and nothing is deferred, here and in all child scopes.
  bool empty() const;
  /// Drops everything, after an error.
  void clear();

 private:
  struct KeptBase {
    virtual ~KeptBase() = default;
  };
  template <class T>
  struct Kept final : KeptBase, Pooled<Kept<T>> {
    explicit Kept(T v) : value(std::move(v)) {}
    T value;
  };

  struct DeferredBase {
    explicit DeferredBase(const TraceLabel& l) : label(l) {}
    virtual ~DeferredBase() = default;
    virtual void run() = 0;
    TraceLabel label;  // of the backward that put it off
  };
  template <class F>
  struct Deferred final : DeferredBase, Pooled<Deferred<F>> {
    Deferred(F f, const TraceLabel& l) : DeferredBase(l), work(std::move(f)) {}
    void run() override { work(); }
    F work;
  };

  Tape(Tape* root, std::string_view name, int index) : root_(root), name_(name), index_(index) {}

  Tape* root_ = this;
  std::string_view name_;
  int index_ = 0;
  std::vector<std::unique_ptr<Tape>> children_;
  std::vector<std::unique_ptr<KeptBase>> saved_;
  std::vector<std::unique_ptr<DeferredBase>> deferred_;  // of the root
  bool deferring_ = false;                               // of the root
  bool keeping_ = true;                                  // of the root
};

}  // namespace phalanx
