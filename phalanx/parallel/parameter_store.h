// All parameters of one rank: where they lie, which ranks share them, initial values.
#pragma once

#include <deque>
#include <numeric>
#include <vector>

#include "phalanx/ops/linear_products.h"
#include "phalanx/parallel/bucket.h"

namespace phalanx {

/// What the ranks that hold the same weights share out (ZeRO, Rajbhandari et al. 2020, section 5; each stage
/// includes those before). Of a model with Ψ elements, R such ranks and AdamW, a rank has of weights,
/// gradients and optimizer state (1 + 1 + 2)Ψ; Ψ + Ψ + 2Ψ/R; Ψ + 2Ψ/R for most of the time + Ψ/R; 4Ψ/R: with
/// what is gathered for the unit at work besides.
enum class Zero : uint8_t {
  none = 0,
  optimizer = 1,  ///< a step sums each rank's share of the gradients, updates it, gathers the others' weights
  gradients = 2,  ///< a unit's gradients are summed into shares after each backward pass
  weights = 3,    ///< a unit's weights are gathered when it runs, forward and backward
};

struct ZeroConfig {
  Zero stage = Zero::none;
  /// Ranks that share out one copy of the state; the others have further copies (hybrid sharding, Zhao et al.
  /// 2023, PyTorch FSDP, section 3.2.2). 0: all that there are; else its greatest common divisor with them.
  int shard = 0;

  /// Of so many ranks of a stage that hold the same weights, those that share them out.
  int sharers(int ranks) const { return stage == Zero::none ? 1 : std::gcd(shard, ranks); }
};

/// How and where weights are kept between the runs of their units.
struct WeightsConfig {
  bool narrow = false;            ///< in bf16
  bool master = true;             ///< of narrow weights there is a copy besides that the optimizer updates
  bool narrow_gradients = false;  ///< in bf16, on GPUs
  std::string master_in = "";  ///< directory of a file, mapped by the host, that holds the master copy; "":
                               ///< it is in the device's memory
  Products products = Products::same;  ///< how linear layers multiply by them
  Device device = kCpu;                ///< of weights, gradients and states, and where units run
};

/// What training keeps beside the parameters and without a gradient (a router's bias): whole on every rank of
/// the stages that have it, and equal. Saved and loaded as the weights are.
struct State {
  std::string name;
  Tensor value;
  bool written_here = true;  ///< by one of the ranks that hold it
};

/// Parameters lie in buckets, ordered by name, and those in one flat tensor.
///
/// In a narrow store weights are kept and sent as bf16; each rank has its share besides in `dtype`, the
/// master copy that the optimizer updates (Micikevicius et al. 2018, Mixed Precision Training, section 3.1),
/// or else the optimizer updates its share of the bf16 weights.
/// On CPUs they become `dtype` while their unit runs; GPUs compute in bf16, sums in f32. Gradients are summed
/// in `dtype`, unless they are narrow, too. Bytes of an element for f32 and R sharers: of weights 2 + 4/R
/// (ZeRO-3: 6/R) instead of 4 (4/R); and half of them travel.
///
/// To infer, on GPUs, a store of bf16 has nothing but the bf16 weights. States are then f32.
class ParameterStore {
 public:
  ParameterStore(Mesh& mesh, DType dtype, const ZeroConfig& zero = {}, const WeightsConfig& weights = {})
      : mesh_(mesh), dtype_(dtype), zero_(zero), weights_(weights) {}

  /// Registers a parameter; its address is stable. One that is there under this name already (the same in
  /// every respect) is shared: a tied embedding, say. So is one of that name on another stage of pp.
  Parameter& add(ParameterSpec spec);
  /// Every parameter that `add` gave so far, in that order.
  const std::vector<Parameter*>& added() const { return added_; }
  /// Registers a state, of zeros in the store's dtype (of bf16: f32); gives its value, which the caller
  /// updates in place.
  Tensor add_state(std::string name, const Shape& shape);
  /// Takes the memory and fills in initial values: the same numbers in every layout. After the last add.
  /// Collective over pp.
  void initialise(uint64_t seed);

  std::deque<Parameter>& all() { return parameters_; }
  std::deque<Bucket>& buckets() { return buckets_; }
  static Bucket& bucket_of(const Parameter& parameter) { return *parameter.bucket_; }
  const std::vector<State>& states() const { return states_; }
  /// The ranks that hold this rank's states; null: no others do.
  Group* state_holders() { return state_holders_; }
  DType dtype() const { return dtype_; }
  /// Of the values that leases give, and of the stream.
  DType compute_dtype() const { return narrow() && device().is_cuda() ? DType::bf16 : dtype_; }
  DType gradient_dtype() const { return weights_.narrow_gradients ? DType::bf16 : dtype_; }
  Device device() const { return weights_.device; }
  Mesh& mesh() { return mesh_; }
  Zero zero() const { return zero_.stage; }
  bool narrow() const { return weights_.narrow; }
  bool has_master() const { return narrow() && weights_.master; }
  Products products() const { return weights_.products; }
  /// Outside its unit's run a parameter has no value() here, but own_value.
  bool keeps_shares() const { return narrow() || zero() == Zero::weights; }

  /// The values of all buckets as they are kept, or, with ZeRO-3, this rank's.
  const Tensor& values() const { return kept(); }

  /// What this rank updates of a parameter (as it lies in memory), and whose gradient is summed here: all, or
  /// with ZeRO its share, perhaps nothing.
  FlatRange share_of(const Parameter& parameter) const;
  /// True on one of the ranks that update that share.
  bool writes_share_of(const Parameter& parameter) const;
  /// That part's values, and its gradient from when it is summed until it has been used for an update (and
  /// somebody asks for a value); [share_of(parameter).size()].
  Tensor own_value(const Parameter& parameter) const {
    if (!has_master()) return own_kept(parameter);
    bucket_of(parameter).settle();
    return own_part(values_, true, parameter);
  }
  Tensor own_grad(const Parameter& parameter) const {
    return own_part_in(share_of_grads(bucket_of(parameter)), parameter);
  }
  /// The same part as it is kept and sent (kept_values).
  Tensor own_kept(const Parameter& parameter) const {
    bucket_of(parameter).settle();
    return own_part(kept(), zero() == Zero::weights, parameter);
  }
  /// Elements of a tensor that holds this rank's shares one behind the other, and a parameter's part of it.
  int64_t share_elements() const { return share_elements_; }
  Tensor own_part(const Tensor& shares, const Parameter& parameter) const {
    return own_part(shares, true, parameter);
  }
  /// A bucket's share of the summed gradients.
  Tensor share_of_grads(const Bucket& bucket) const;

  /// As they are kept and sent, bf16 in a narrow store: a bucket's share, and, but for ZeRO-3, all of it.
  Tensor kept_share(const Bucket& bucket) const { return share_in(kept(), zero() == Zero::weights, bucket); }
  Tensor kept_values(const Bucket& bucket) const {
    return kept().slice(bucket.begin, bucket.begin + bucket.elements);
  }

  /// True if its rows may move between several ranks of ep, and nobody shares them out.
  bool sums_by_row(const Parameter& parameter) const {
    return parameter.spec().rows_move && mesh_.size(Axis::ep) > 1 && zero() == Zero::none;
  }

  /// Rounds what is kept anew, after a master copy was written by others than the optimizer: all, or what is
  /// this rank's of a parameter.
  void narrow_kept() const;
  void narrow_kept(const Parameter& parameter) const;
  /// Makes every gradient 0: at once in effect, in memory where nothing else writes it first.
  void zero_grads();

 private:
  int64_t aligned(int64_t elements) const;
  Bucket& bucket_for(const Parameter& parameter, const std::vector<int>& holders);
  bool is_of_stage(int world_rank) const {
    return mesh_.coordinates_of(world_rank)[static_cast<size_t>(Axis::pp)] == mesh_.coordinate(Axis::pp);
  }
  void share_out(Bucket& bucket, const std::vector<int>& members, const std::string& axes) const;
  void fill_buckets();
  void find_state_holders(std::span<const std::vector<int>> holders);
  Tensor own_part(const Tensor& flat, bool shares, const Parameter& parameter) const {
    return own_part_in(share_in(flat, shares, bucket_of(parameter)), parameter);
  }
  Tensor own_part_in(const Tensor& share, const Parameter& parameter) const;
  static Tensor share_in(const Tensor& flat, bool shares, const Bucket& bucket);
  void fill(const Parameter& parameter, uint64_t seed) const;
  void fill_kept(const Parameter& parameter, uint64_t seed) const;
  const Tensor& kept() const { return narrow() ? narrow_values_ : values_; }

  Mesh& mesh_;
  DType dtype_;
  ZeroConfig zero_;
  WeightsConfig weights_;
  std::deque<Parameter> parameters_;
  std::vector<Parameter*> added_;
  std::deque<Bucket> buckets_;
  std::vector<State> states_;
  Group* state_holders_ = nullptr;
  int64_t share_elements_ = 0;
  Tensor values_;         // of all buckets, or this rank's shares of them; in a narrow store the master copy
  Tensor narrow_values_;  // of a narrow store
};

}  // namespace phalanx
