#include "phalanx/ep/replica_packing.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace phalanx::ep {
namespace {

constexpr int kShaken = 2;           // changes of a shake
constexpr double kLeastGain = 1e-9;  // of a change, as a part of the load: more than rounding makes

}  // namespace

// What `slot` (of the GPU that is to get less) and `other` do.
struct ReplicaPacking::Change {
  double worst;    // the largest load of the GPUs that it touches; must be below what the GPU had
  int slot = -1;   // −1: none
  int other = -1;  // exchange with this slot; −1: give the slot to `expert`
  int32_t expert = -1;
};

void ReplicaPacking::begin(std::span<const double> load_E, int gpus, int slots) {
  load_E_ = load_E;
  gpus_ = gpus;
  slots_ = slots;
  const auto replicas = static_cast<size_t>(gpus) * static_cast<size_t>(slots);
  copies_E_.resize(load_E.size());
  replica_E_.resize(load_E.size());
  expert_R_.resize(replicas);
  replica_R_.resize(replicas);
  load_D_.resize(static_cast<size_t>(gpus));
  has_D_.resize(static_cast<size_t>(gpus));
  by_load_.clear();
  for (size_t e = 0; e < load_E.size(); ++e) by_load_.push_back({load_E[e], static_cast<int32_t>(e)});
  std::ranges::stable_sort(by_load_, std::greater(), &Keyed::load);
  before_R_ = {};
  most_moves_ = std::numeric_limits<int64_t>::max();
  moves_ = 0;
}

void ReplicaPacking::set_copies(int32_t expert, int32_t copies) {
  const auto e = static_cast<size_t>(expert);
  copies_E_[e] = copies;
  replica_E_[e] = load_E_[e] / copies;
}

void ReplicaPacking::put(int slot, int32_t expert) {
  expert_R_[static_cast<size_t>(slot)] = expert;
  replica_R_[static_cast<size_t>(slot)] = replica_E_[static_cast<size_t>(expert)];
}

void ReplicaPacking::sum_loads() {
  for (int g = 0; g < gpus_; ++g) {
    double sum = 0;
    for (int i = g * slots_; i < (g + 1) * slots_; ++i) sum += replica_R_[static_cast<size_t>(i)];
    load_D_[static_cast<size_t>(g)] = sum;
  }
}

// Experts by descending load of a replica. Whole ones are in order of their loads already.
void ReplicaPacking::order_experts() {
  const auto before = [](const Keyed& a, const Keyed& b) {
    return a.load != b.load ? a.load > b.load : a.index < b.index;
  };
  whole_.clear();
  split_.clear();
  for (const Keyed& item : by_load_) {
    const auto e = static_cast<size_t>(item.index);
    (copies_E_[e] == 1 ? whole_ : split_).push_back({replica_E_[e], item.index});
  }
  std::ranges::sort(split_, before);
  order_.resize(by_load_.size());
  std::ranges::merge(whole_, split_, order_.begin(), before);
}

// A replica of an expert to each of the first `count` open GPUs, which are in order of their loads; they come
// to their new places in that order, or are full and go.
void ReplicaPacking::put_on_least_loaded(const Keyed& expert, size_t count) {
  lifted_.clear();
  for (size_t i = 0; i < count; ++i) {
    const Keyed& gpu = open_[i];
    int32_t& filled = filled_D_[static_cast<size_t>(gpu.index)];
    put(gpu.index * slots_ + filled++, expert.index);
    if (filled < slots_) lifted_.push_back({gpu.load + expert.load, gpu.index});
  }
  size_t to = 0;
  size_t from = count;
  for (const Keyed& gpu : lifted_) {
    while (from < open_.size() && open_[from].load < gpu.load) open_[to++] = open_[from++];
    open_[to++] = gpu;
  }
  if (to < from)
    open_.erase(std::move(open_.begin() + static_cast<int64_t>(from), open_.end(),
                          open_.begin() + static_cast<int64_t>(to)),
                open_.end());
}

void ReplicaPacking::pack(std::span<const int32_t> copies_E) {
  for (size_t e = 0; e < copies_E.size(); ++e) set_copies(static_cast<int32_t>(e), copies_E[e]);
  order_experts();
  open_.clear();
  for (int g = 0; g < gpus_; ++g) open_.push_back({0, g});
  filled_D_.assign(static_cast<size_t>(gpus_), 0);
  bool doubled = false;
  for (const Keyed& expert : order_) {
    auto copies = static_cast<size_t>(copies_E[static_cast<size_t>(expert.index)]);
    doubled = doubled || copies > open_.size();
    while (copies > 0) {
      const size_t count = std::min(copies, open_.size());
      put_on_least_loaded(expert, count);
      copies -= count;
    }
  }
  sum_loads();
  if (doubled) part_duplicates();
}

void ReplicaPacking::adopt(std::span<const int32_t> expert_R) {
  std::ranges::fill(copies_E_, 0);
  for (const int32_t e : expert_R) ++copies_E_[static_cast<size_t>(e)];
  for (size_t e = 0; e < copies_E_.size(); ++e) set_copies(static_cast<int32_t>(e), copies_E_[e]);
  for (size_t i = 0; i < expert_R.size(); ++i) put(static_cast<int>(i), expert_R[i]);
  sum_loads();
}

void ReplicaPacking::limit_moves(std::span<const int32_t> before_R, int64_t most) {
  before_R_ = before_R;
  most_moves_ = most;
}

int ReplicaPacking::copies_on(int gpu, int32_t expert) const {
  const auto* const at = expert_R_.data() + gpu * slots_;
  return static_cast<int>(std::count(at, at + slots_, expert));
}

bool ReplicaPacking::held(int gpu, int32_t expert) const {
  const auto* const at = before_R_.data() + gpu * slots_;
  return std::find(at, at + slots_, expert) != at + slots_;
}

// By how many the pairs that were not there before grow when a GPU gives `out` for `in`, which it has not.
int ReplicaPacking::new_pairs(int gpu, int32_t out, int32_t in) const {
  if (before_R_.empty()) return 0;
  const bool last = copies_on(gpu, out) == 1;
  return (held(gpu, in) ? 0 : 1) - (last && !held(gpu, out) ? 1 : 0);
}

int ReplicaPacking::most_loaded() const {
  return static_cast<int>(std::ranges::max_element(load_D_) - load_D_.begin());
}

double ReplicaPacking::largest_load() const { return std::ranges::max(load_D_); }

// Exchanges the replica in a slot, of which its GPU has another, for one of a GPU that has none of it.
bool ReplicaPacking::part(int slot) {
  const int gpu = gpu_of(slot);
  const int32_t expert = expert_R_[static_cast<size_t>(slot)];
  int best = -1;
  double nearest = std::numeric_limits<double>::infinity();
  for (int i = 0; i < std::ssize(expert_R_); ++i) {
    const auto at = static_cast<size_t>(i);
    const double change = std::abs(replica_R_[at] - replica_R_[static_cast<size_t>(slot)]);
    if (change >= nearest || holds(gpu_of(i), expert) || holds(gpu, expert_R_[at])) continue;
    nearest = change;
    best = i;
  }
  if (best < 0) return false;
  const int32_t other = expert_R_[static_cast<size_t>(best)];
  put(best, expert);
  put(slot, other);
  return true;
}

// One after the other onto GPU 0, 1, …: with at most D replicas an expert, never two on one.
void ReplicaPacking::deal() {
  int i = 0;
  for (const Keyed& item : by_load_) {
    for (int32_t c = 0; c < copies_E_[static_cast<size_t>(item.index)]; ++c, ++i) {
      put(i % gpus_ * slots_ + i / gpus_, item.index);
    }
  }
}

void ReplicaPacking::part_duplicates() {
  bool parted = true;
  for (int i = 0; i < std::ssize(expert_R_) && parted; ++i) {
    const auto* const at = expert_R_.data() + gpu_of(i) * slots_;
    const auto* const end = expert_R_.data() + i;
    if (std::find(at, end, *end) != end) parted = part(i);
  }
  if (!parted) deal();
  sum_loads();
}

// The slots of each expert, for best_recount.
void ReplicaPacking::list_slots() {
  first_E_.assign(copies_E_.size() + 1, 0);
  for (size_t e = 0; e < copies_E_.size(); ++e) first_E_[e + 1] = first_E_[e] + copies_E_[e];
  slots_of_.resize(expert_R_.size());
  for (size_t i = expert_R_.size(); i-- > 0;) {
    const auto e = static_cast<size_t>(expert_R_[i]);
    slots_of_[static_cast<size_t>(--first_E_[e + 1])] = static_cast<int32_t>(i);
  }
  // Each first_E_[e + 1] has come down to the beginning of e.
  first_E_.erase(first_E_.begin());
  first_E_.push_back(static_cast<int32_t>(expert_R_.size()));
}

void ReplicaPacking::exchanges_with(int gpu, int other, Change& best) const {
  const double sum = load_D_[static_cast<size_t>(gpu)] + load_D_[static_cast<size_t>(other)];
  const double half = (load_D_[static_cast<size_t>(gpu)] - load_D_[static_cast<size_t>(other)]) / 2;
  // Moving a load of d leaves the larger of the two at sum / 2 + |d − half|.
  double limit = best.worst - sum / 2;
  for (int i = gpu * slots_; i < (gpu + 1) * slots_; ++i) {
    const double wanted = replica_R_[static_cast<size_t>(i)] - half;
    for (int j = other * slots_; j < (other + 1) * slots_; ++j) {
      const double off = std::abs(replica_R_[static_cast<size_t>(j)] - wanted);
      if (off >= limit) continue;
      const int32_t a = expert_R_[static_cast<size_t>(i)];
      const int32_t b = expert_R_[static_cast<size_t>(j)];
      if (holds(gpu, b) || holds(other, a)) continue;
      if (!allowed(new_pairs(gpu, a, b) + new_pairs(other, b, a))) continue;
      limit = off;
      best = {.worst = sum / 2 + off, .slot = i, .other = j};
    }
  }
}

// With the least loaded GPU first, since few others can then do better.
ReplicaPacking::Change ReplicaPacking::best_exchange(int gpu, double target) const {
  const double load = load_D_[static_cast<size_t>(gpu)];
  Change best{.worst = load * (1 - kLeastGain)};
  const auto least = static_cast<int>(std::ranges::min_element(load_D_) - load_D_.begin());
  exchanges_with(gpu, least, best);
  for (int h = 0; h < gpus_ && best.worst > target; ++h) {
    if (h != gpu && h != least && (load + load_D_[static_cast<size_t>(h)]) / 2 < best.worst) {
      exchanges_with(gpu, h, best);
    }
  }
  return best;
}

// The largest load of the GPUs with a replica of an expert, other than `but`, when each replica gets `more`.
// A GPU that has two (of an incumbent) gets it twice: its slots follow each other in the list.
double ReplicaPacking::largest_with(size_t expert, double more, int but, double less) const {
  double largest = 0;
  int gpu = -1;
  double load = 0;
  for (int32_t i = first_E_[expert]; i < first_E_[expert + 1]; ++i) {
    const int at = gpu_of(slots_of_[static_cast<size_t>(i)]);
    if (at == but) continue;
    const auto g = static_cast<size_t>(at);
    load = at == gpu ? load + more : load_D_[g] + more - less * has_D_[g];
    gpu = at;
    largest = std::max(largest, load);
  }
  return largest;
}

// One more replica of an expert of the GPU, in a slot elsewhere.
void ReplicaPacking::spread_from(int gpu, int32_t expert, Change& best) {
  const auto e = static_cast<size_t>(expert);
  const double share = load_E_[e] / (copies_E_[e] + 1);
  const double less = replica_E_[e] - share;
  std::ranges::fill(has_D_, 0);
  for (int32_t i = first_E_[e]; i < first_E_[e + 1]; ++i) {
    ++has_D_[static_cast<size_t>(gpu_of(slots_of_[static_cast<size_t>(i)]))];
  }
  const double rest = load_D_[static_cast<size_t>(gpu)] - less * has_D_[static_cast<size_t>(gpu)];
  if (rest >= best.worst) return;
  for (size_t f = 0; f < copies_E_.size(); ++f) {
    if (copies_E_[f] < 2 || f == e) continue;
    const auto out = static_cast<int32_t>(f);
    const double more = load_E_[f] / (copies_E_[f] - 1) - replica_E_[f];
    for (int32_t k = first_E_[f]; k < first_E_[f + 1]; ++k) {
      const int slot = slots_of_[static_cast<size_t>(k)];
      const int h = gpu_of(slot);
      if (has_D_[static_cast<size_t>(h)] > 0) continue;
      const double there =
          load_D_[static_cast<size_t>(h)] - replica_E_[f] + share + more * (copies_on(h, out) - 1);
      if (std::max(there, rest) >= best.worst) continue;
      const double worst = std::max({there, rest, largest_with(f, more, h, less)});
      if (worst >= best.worst || !allowed(new_pairs(h, out, expert))) continue;
      best = {.worst = worst, .slot = slot, .expert = expert};
    }
  }
}

// One replica less of the GPU's expert in `slot`, which another expert gets.
void ReplicaPacking::withdraw_from(int gpu, int slot, Change& best) const {
  const int32_t expert = expert_R_[static_cast<size_t>(slot)];
  const auto f = static_cast<size_t>(expert);
  if (copies_E_[f] < 2) return;
  const double more = load_E_[f] / (copies_E_[f] - 1) - replica_E_[f];
  const double others = largest_with(f, more, gpu, 0);
  if (others >= best.worst) return;
  const double rest = load_D_[static_cast<size_t>(gpu)] - replica_E_[f] + more * (copies_on(gpu, expert) - 1);
  for (size_t e = 0; e < copies_E_.size(); ++e) {
    const double worst = std::max(others, rest + load_E_[e] / (copies_E_[e] + 1));
    if (worst >= best.worst || e == f || holds(gpu, static_cast<int32_t>(e))) continue;
    if (!allowed(new_pairs(gpu, expert, static_cast<int32_t>(e)))) continue;
    best = {.worst = worst, .slot = slot, .expert = static_cast<int32_t>(e)};
  }
}

ReplicaPacking::Change ReplicaPacking::best_recount(int gpu) {
  list_slots();
  Change best{.worst = load_D_[static_cast<size_t>(gpu)] * (1 - kLeastGain)};
  for (int i = gpu * slots_; i < (gpu + 1) * slots_; ++i) {
    spread_from(gpu, expert_R_[static_cast<size_t>(i)], best);
    withdraw_from(gpu, i, best);
  }
  return best;
}

void ReplicaPacking::apply(const Change& change) {
  const int gpu = gpu_of(change.slot);
  const int32_t out = expert_R_[static_cast<size_t>(change.slot)];
  if (change.other >= 0) {
    const int32_t in = expert_R_[static_cast<size_t>(change.other)];
    moves_ += new_pairs(gpu, out, in) + new_pairs(gpu_of(change.other), in, out);
    put(change.slot, in);
    put(change.other, out);
  } else {
    moves_ += new_pairs(gpu, out, change.expert);
    set_copies(out, copies_E_[static_cast<size_t>(out)] - 1);
    set_copies(change.expert, copies_E_[static_cast<size_t>(change.expert)] + 1);
    put(change.slot, change.expert);
    for (size_t i = 0; i < expert_R_.size(); ++i)
      replica_R_[i] = replica_E_[static_cast<size_t>(expert_R_[i])];
  }
  sum_loads();
}

void ReplicaPacking::shake(std::minstd_rand& random) {
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  const auto replicas = static_cast<int>(expert_R_.size());
  int slot = most_loaded() * slots_ + below(slots_);
  for (int changed = 0, draws = 0; changed < kShaken && draws < 8 * kShaken; ++draws) {
    const int other = below(replicas);
    const int32_t out = expert_R_[static_cast<size_t>(slot)];
    const int32_t in = expert_R_[static_cast<size_t>(other)];
    const bool recount = copies_E_[static_cast<size_t>(out)] > 1 && below(2) == 0;
    if (holds(gpu_of(slot), in) || (!recount && holds(gpu_of(other), out))) continue;
    apply(recount ? Change{.worst = 0, .slot = slot, .expert = in}
                  : Change{.worst = 0, .slot = slot, .other = other});
    slot = below(replicas);
    ++changed;
  }
}

bool ReplicaPacking::improve(double target, int changes) {
  for (int i = 0; i < changes; ++i) {
    const int gpu = most_loaded();
    if (load_D_[static_cast<size_t>(gpu)] <= target) return true;
    Change change = best_exchange(gpu, target);
    if (change.slot < 0) change = best_recount(gpu);
    if (change.slot < 0) return false;
    apply(change);
  }
  return true;
}

}  // namespace phalanx::ep
