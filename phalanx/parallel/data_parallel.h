// What ranks that hold the same weights do together: sum gradients while backward still runs, and with ZeRO
// keep shares (parameter_store.h).
//
// Bytes that a rank sends, with R sharers, Ψ elements of a bucket and n = (R − 1)/R · Ψ: without ZeRO 2n a
// step (an all_reduce); stage 1 the same (a reduce-scatter, an all-gather); stage 2 n for each backward pass
// and n; stage 3 n for each backward pass and n for each time that its unit runs, twice a microbatch. A tied
// table belongs to two units, the embedding (which backward does not run again) and the output head. With
// hybrid sharding the sum of a share over its r replicas besides: 2(r − 1)/r · Ψ/R. Of a narrow store the
// gathers' elements are bf16.
#pragma once

#include <vector>

#include "phalanx/parallel/parameter_store.h"

namespace phalanx {

/// Used by one rank's thread; all ranks call the same in the same order.
class DataParallel {
 public:
  explicit DataParallel(ParameterStore& store) : store_(store) {}
  const ParameterStore& store() const { return store_; }

  /// A part of the model: the buckets whose weights it needs at one time, and whose gradients it adds to.
  class Part {
   public:
    /// The parameters that the store was given behind its first so many.
    Part(const ParameterStore& store, size_t before)
        : parameters_(store.added().begin() + static_cast<ptrdiff_t>(before), store.added().end()) {}

   private:
    friend class DataParallel;
    std::vector<Parameter*> parameters_;
    std::vector<Bucket*> buckets_;  // of them, once the store is initialised
  };

  /// While it lives the part's weights are here.
  class [[nodiscard]] Hold {
   public:
    Hold(DataParallel& data, Part& part) : data_(&data), part_(&part) {}
    Hold(Hold&& other) noexcept : data_(std::exchange(other.data_, nullptr)), part_(other.part_) {}
    Hold& operator=(Hold&&) = delete;
    ~Hold() {
      if (data_) data_->release(*part_);
    }

   private:
    DataParallel* data_;
    Part* part_;
  };
  /// With ZeRO-3 gathers what is not here or on its way; widens what is kept narrow.
  Task<Hold> hold(Part* part);
  /// Starts that for a part that will be held soon.
  void prefetch(Part& part);

  /// So many backward passes through the part will add to its gradients until they are complete.
  void expect(Part& part, int passes);
  /// One of them did. Starts to sum what is complete, or with ZeRO-2 this pass's gradients.
  void passed(Part& part);
  /// Waits for sums until no more than `in_flight` are unfinished.
  Task<> settle(size_t in_flight);

  /// Finishes every sum; own_grad of the store is then the sum over all ranks.
  Task<> reduce_grads();
  /// After an update of own_value and own_kept of the store: with ZeRO-1 and 2 gathers the weights that other
  /// ranks have updated.
  Task<> publish_values();
  /// √Σ g² over the whole model; a parameter's every element counts once. The same bits on all ranks.
  Task<double> grad_norm();

 private:
  std::vector<Bucket*>& buckets_of(Part& part);
  void release(Part& part);
  Tensor wide(const Tensor& kept) const;
  void start_gather(Bucket& bucket);
  void arrive(Bucket& bucket);
  void start_sum(Bucket& bucket);
  Task<> sum(Bucket* bucket);
  Task<double> squares_by_row(Parameter* parameter);

  ParameterStore& store_;
  PooledVector<Task<>> sums_;  // oldest first
};

}  // namespace phalanx
