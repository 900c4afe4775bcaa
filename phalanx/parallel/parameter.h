// Parameters: one contract for what a tensor of weights is, where it lies, who shares it and how to use it.
#pragma once

#include <string>
#include <vector>

#include "phalanx/base/task.h"
#include "phalanx/comm/placement.h"
#include "phalanx/ops/matmul.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

/// How a parameter starts.
struct Init {
  enum class Kind : uint8_t { zeros, ones, normal };
  Kind kind = Kind::normal;
  double std = 0.02;
  friend bool operator==(const Init&, const Init&) = default;
};

/// What ranks that differ along tp alone compute of the gradient of a parameter that they all hold: all of
/// it, alike, from the same rows; or a part of it each, from their own rows or heads.
enum class OverTp : uint8_t { alike, parts };

struct ParameterSpec {
  std::string name;  // "layers.3.moe.w_up"; equal on every rank and in every layout
  Shape shape;       // of the full tensor
  Placement placement;
  Init init;
  bool weight_decay = true;
  OverTp gradient = OverTp::alike;
  bool rows_move = false;  // rows of dimension 0, cut over ep, may come to lie elsewhere (set_row_numbers)
  friend bool operator==(const ParameterSpec&, const ParameterSpec&) = default;
};

class Parameter;
struct Bucket;

/// The right to read a parameter's value while it lives.
class [[nodiscard]] Lease {
 public:
  explicit Lease(Parameter& parameter);
  Lease(Lease&& other) noexcept : parameter_(std::exchange(other.parameter_, nullptr)) {}
  Lease& operator=(Lease&&) = delete;
  ~Lease();
  /// The local part, in the compute dtype.
  const Tensor& value() const;

 private:
  Parameter* parameter_;
};

class Parameter {
 public:
  explicit Parameter(ParameterSpec spec, LocalSlice slice) : spec_(std::move(spec)), slice_(slice) {}

  const ParameterSpec& spec() const { return spec_; }
  const std::string& name() const { return spec_.name; }
  const LocalSlice& slice() const { return slice_; }

  /// `const Lease w = co_await p.use();` A value that is at hand does not suspend.
  struct Use {
    Parameter& parameter;
    bool await_ready() const noexcept { return true; }
    void await_suspend(std::coroutine_handle<>) const noexcept {}
    Lease await_resume() const { return Lease(parameter); }
  };
  Use use() { return {*this}; }

  /// Which row of the full tensor each local one is, where rows have moved; else empty: as slice() says.
  std::span<const int32_t> row_numbers() const { return row_numbers_; }
  void set_row_numbers(std::span<const int32_t> numbers) {
    row_numbers_.assign(numbers.begin(), numbers.end());
  }

  /// The local gradient; backward adds to it.
  Tensor grad();
  /// The same, written by now.
  Tensor grad() const {
    PHX_CHECK(grad_written_, "{}: nothing has written the gradient", name());
    return grad_;
  }
  /// For a product that adds the gradient of the whole weight: the first one of a step may overwrite what is
  /// left of the step before, and nobody has to clear it.
  struct GradSum {
    Tensor grad;
    Into into;
  };
  GradSum grad_sum();
  /// True on one of the ranks that hold this part.
  bool is_owner() const { return owner_; }
  /// Outside a step: the local value itself, unless ranks share out the weights. Nobody may hold a lease.
  Tensor value() const {
    PHX_CHECK(leases_ == 0, "{}: {} leases are out", name(), leases_);
    PHX_CHECK(value_.defined(), "{}: this rank has a share of the weight only", name());
    settle();
    return value_;
  }

 private:
  friend class Lease;
  friend class ParameterStore;
  friend struct Bucket;
  void settle() const;  // Bucket::settle
  ParameterSpec spec_;
  LocalSlice slice_;
  std::vector<int32_t> row_numbers_;
  Bucket* bucket_ = nullptr;
  int64_t at_ = 0;  // in the bucket, in elements
  Tensor value_;
  Tensor grad_;
  bool grad_written_ = false;  // since the last zero_grads, or the last time that it was taken to be summed
  bool owner_ = true;
  int leases_ = 0;
};

inline Lease::Lease(Parameter& parameter) : parameter_(&parameter) { ++parameter.leases_; }
inline Lease::~Lease() {
  if (parameter_) --parameter_->leases_;
}
inline const Tensor& Lease::value() const {
  PHX_CHECK(parameter_->value_.defined(), "{}: nobody holds the weight here", parameter_->name());
  return parameter_->value_;
}

}  // namespace phalanx
