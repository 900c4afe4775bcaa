// The replicas of one node on its GPUs, and the changes that make its largest load smaller.
#pragma once

#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <vector>

namespace phalanx::ep {

/// E experts of given loads, D GPUs of S slots, E ≤ D·S. Keeps its working memory from one problem to the
/// next. Decides in f64, ties by the lowest index.
class ReplicaPacking {
 public:
  /// A new problem, nothing placed. `load_E` must stay.
  void begin(std::span<const double> load_E, int gpus, int slots);
  /// So many replicas of each expert, 1 to D each and D·S in all: those of the largest first, each expert's
  /// on the least loaded GPUs with room. Two come to one GPU only at the end, and are then exchanged away.
  void pack(std::span<const int32_t> copies_E);
  /// The experts in the slots, each at least once.
  void adopt(std::span<const int32_t> expert_R);
  /// Exchanges replicas so that no GPU has two of one expert; where that fails, places all anew. No expert
  /// may have more than D replicas.
  void part_duplicates();
  /// From now on at most `most` pairs (GPU, expert) may differ from those of `before_R`.
  void limit_moves(std::span<const int32_t> before_R, int64_t most);

  /// Exchanges two replicas, or gives the slot of a replica to another expert, such that the most loaded GPU
  /// gets less and no other as much as it had; never two replicas of an expert to one GPU. Stops at `target`,
  /// after so many changes, or (false) when no change is left.
  bool improve(double target, int changes);

  /// A few changes at random, the first on the most loaded GPU; never two replicas of an expert to one GPU.
  void shake(std::minstd_rand& random);

  double largest_load() const;
  std::span<const int32_t> expert_R() const { return expert_R_; }
  std::span<const int32_t> copies_E() const { return copies_E_; }
  /// Pairs that differ from those that limit_moves was given.
  int64_t moves() const { return moves_; }

 private:
  struct Change;
  struct Keyed {
    double load;
    int32_t index;
  };

  int gpu_of(int slot) const { return slot / slots_; }
  int copies_on(int gpu, int32_t expert) const;
  bool holds(int gpu, int32_t expert) const { return copies_on(gpu, expert) > 0; }
  bool held(int gpu, int32_t expert) const;
  int new_pairs(int gpu, int32_t out, int32_t in) const;
  bool allowed(int pairs) const { return moves_ + pairs <= most_moves_; }
  int most_loaded() const;
  void set_copies(int32_t expert, int32_t copies);
  void put(int slot, int32_t expert);
  void sum_loads();
  void order_experts();
  void put_on_least_loaded(const Keyed& expert, size_t count);
  bool part(int slot);
  void deal();
  void list_slots();
  Change best_exchange(int gpu, double target) const;
  void exchanges_with(int gpu, int other, Change& best) const;
  Change best_recount(int gpu);
  double largest_with(size_t expert, double more, int but, double less) const;
  void spread_from(int gpu, int32_t expert, Change& best);
  void withdraw_from(int gpu, int slot, Change& best) const;
  void apply(const Change& change);

  std::span<const double> load_E_;
  int gpus_ = 0;
  int slots_ = 0;
  std::vector<int32_t> copies_E_;
  std::vector<double> replica_E_;  // load of one replica
  std::vector<int32_t> expert_R_;
  std::vector<double> replica_R_;  // load of the replica in each slot
  std::vector<double> load_D_;
  std::span<const int32_t> before_R_;
  int64_t most_moves_ = std::numeric_limits<int64_t>::max();
  int64_t moves_ = 0;
  // Working memory.
  std::vector<Keyed> by_load_;  // the experts, by descending load
  std::vector<Keyed> whole_;    // of one replica, in that order
  std::vector<Keyed> split_;
  std::vector<Keyed> order_;  // both, by descending load of a replica
  std::vector<Keyed> open_;   // GPUs with room, by ascending load
  std::vector<Keyed> lifted_;
  std::vector<int32_t> filled_D_;
  std::vector<int32_t> first_E_;   // [E + 1]: where an expert's slots begin in slots_of_
  std::vector<int32_t> slots_of_;  // [R]: slots by expert
  std::vector<int32_t> has_D_;     // replicas of the expert in question on each GPU
};

}  // namespace phalanx::ep
