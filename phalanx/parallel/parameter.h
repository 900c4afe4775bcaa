// Parameters: one contract for what a tensor of weights is, where it lies, who shares it and how to use it.
#pragma once

#include <deque>
#include <string>

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
};

/// What training keeps beside the parameters and without a gradient (a router's bias): whole on every rank of
/// the stage, and equal. Saved and loaded as the weights are.
struct State {
  std::string name;
  Tensor value;
};

class Parameter;

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
  GradSum grad_sum() { return {grad_, std::exchange(grad_written_, true) ? Into::add : Into::replace}; }
  /// True on one of the ranks of the stage that hold this part.
  bool is_owner() const { return owner_; }
  /// Where the local part stands in the store's flat tensors: [flat_begin, flat_begin + numel).
  int64_t flat_begin() const { return flat_begin_; }
  /// Outside a step: the local value itself. Nobody may hold a lease.
  Tensor value() const {
    PHX_CHECK(leases_ == 0, "{}: {} leases are out", name(), leases_);
    return value_;
  }

 private:
  friend class Lease;
  friend class ParameterStore;
  ParameterSpec spec_;
  LocalSlice slice_;
  Tensor value_;
  Tensor grad_;
  bool grad_written_ = false;  // since the last zero_grads
  int64_t flat_begin_ = 0;
  bool owner_ = true;
  int leases_ = 0;
};

inline Lease::Lease(Parameter& parameter) : parameter_(&parameter) { ++parameter.leases_; }
inline Lease::~Lease() {
  if (parameter_) --parameter_->leases_;
}
inline const Tensor& Lease::value() const { return parameter_->value_; }

/// A run [begin, end) of flat tensors.
struct FlatRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

/// How much of the training state the ranks that hold the same weights share out (ZeRO, Rajbhandari et al.
/// 2020, section 5): nothing, or the optimizer's state. A rank then receives the sum of its share of the
/// gradient alone (a reduce-scatter), updates its share of the weights, and gathers the others' (an
/// all-gather: the bytes of the all_reduce that they replace).
enum class Zero : uint8_t { none = 0, optimizer = 1 };

/// All parameters of one rank. Values and gradients each lie in one flat tensor, ordered by the ranks over
/// which the gradient is summed; with ZeRO each such run is cut into equal shares, filled up with zeros.
class ParameterStore {
 public:
  ParameterStore(Mesh& mesh, DType dtype, Zero zero = Zero::none) : mesh_(mesh), dtype_(dtype), zero_(zero) {}

  /// Registers a parameter; its address is stable.
  Parameter& add(ParameterSpec spec);
  /// Takes the memory and fills in initial values: the same numbers in every layout. After the last add.
  void initialise(uint64_t seed);

  /// The parameter of that name, registered by the first layer that asks: layers that share it add to one
  /// gradient.
  Parameter& add_shared(ParameterSpec spec);
  /// Registers a state, of zeros in the store's dtype; gives its value, which the caller updates in place.
  Tensor add_state(std::string name, const Shape& shape);
  const std::vector<State>& states() const { return states_; }

  std::deque<Parameter>& all() { return parameters_; }
  /// The part of a tensor laid out as values() is (a gradient, a moment) that belongs to `parameter`, in its
  /// shape.
  static Tensor part_of(const Tensor& flat, const Parameter& parameter) {
    const Shape& local = parameter.slice().local;
    return flat.slice(parameter.flat_begin(), parameter.flat_begin() + local.numel()).view(local);
  }
  DType dtype() const { return dtype_; }
  Mesh& mesh() { return mesh_; }
  const Tensor& values() const { return values_; }
  const Tensor& grads();

  Zero zero() const { return zero_; }
  /// What this rank updates of the flat tensors, ascending: all, or its shares.
  const std::vector<FlatRange>& shares() const { return shares_; }
  /// The elements of the parameter (as it lies in memory) that this rank updates, and whose gradient is
  /// summed here; with ZeRO perhaps none.
  FlatRange share_of(const Parameter& parameter) const;
  /// True on one of the ranks of the stage that update that share.
  bool writes_share_of(const Parameter& parameter) const;

  /// Makes every gradient 0: at once in effect, in memory where nothing else writes it first.
  void zero_grads();
  /// Sums every gradient over the ranks that hold a replica of its parameter and have another part of it;
  /// with ZeRO this rank's share alone.
  Task<> reduce_grads();
  /// With ZeRO: gathers the shares of the values that other ranks have updated.
  Task<> gather_values();
  /// √Σ g² over the whole model; a parameter's every element counts once. The same bits on all ranks.
  Task<double> grad_norm();

 private:
  // Parameters whose gradients the same ranks sum: a run of the flat tensors.
  struct GradSum {
    Group* group;
    bool counts = true;  // in the gradient norm: other ranks of tp may have the same
    FlatRange run = {};
    FlatRange share = {};  // that this rank updates
  };
  GradSum& sum_of(const Parameter& parameter, const std::vector<int>& holders);
  // That the parameter lies in; null where it has no elements behind the last run.
  const GradSum* run_of(const Parameter& parameter) const;
  void lay_out(GradSum& sum, int64_t begin, int64_t end);

  Mesh& mesh_;
  DType dtype_;
  Zero zero_;
  std::deque<Parameter> parameters_;
  Tensor values_;
  Tensor grads_;
  std::vector<GradSum> sums_;
  std::vector<FlatRange> shares_;
  std::vector<State> states_;
};

}  // namespace phalanx
