#include "phalanx/train/memory.h"

#include <algorithm>
#include <map>
#include <vector>

#include "phalanx/base/error.h"
#include "phalanx/base/units.h"
#include "phalanx/model/stage.h"
#include "phalanx/parallel/parameter_store.h"
#include "phalanx/train/gradient_memory.h"
#include "phalanx/train/layer_memory.h"
#include "phalanx/train/local_elements.h"

namespace phalanx {
namespace {

struct Live {
  int64_t saved = 0;
  int64_t working = 0;
  int64_t gradients = 0;  // of weights
  int64_t sum() const { return saved + working + gradients; }
};

// What the tape keeps of a layer's branches from forward to backward.
int64_t kept_by(const LayerMemory& layers, int layer, Recompute again) {
  if (again == Recompute::full) return layers.x() + layers.kept_for_later();
  return (again == Recompute::attention ? layers.x() + layers.kept_for_later() : layers.attention().saved) +
         (again == Recompute::mlp ? layers.x() : layers.mlp(layer).saved);
}

// Behind a stage's layers, and on the last stage the blocks of multi-token prediction.
int end_block(const ModelConfig& c, const StagePart& part) {
  return part.predicts ? c.blocks() : part.end_layer;
}

int64_t saved_by(const LayerMemory& layers, const ModelConfig& c, const StagePart& part,
                 const Recomputation& again) {
  int64_t saved = part.predicts ? layers.head() + c.mtp * (layers.mtp_entry() + layers.head()) : 0;
  for (int i = part.first_layer; i < end_block(c, part); ++i)
    saved += kept_by(layers, i, again.of(i - part.first_layer));
  return saved;
}

// What the backward of one microbatch holds at most, and what is left when it ends: with its weight gradients
// put off, what those need.
struct BackwardMemory {
  Live peak;
  int64_t left = 0;
};

class BackwardWalk {
 public:
  // Gradients that are there already count as none.
  BackwardWalk(const LayerMemory& layers, int64_t saved, const ChunkGradients& gradients, bool deferring)
      : layers_(layers), before_(saved), gradients_(gradients), deferring_(deferring) {}

  // A head's product with logits, its weights transposed or its input's gradient beside them.
  void head() {
    come_ = gradients_.head;
    if (layers_.by_rows()) {  // at the loss, which is the end of forward
      at(layers_.logits() + layers_.x());
      before_ -= layers_.head();
      return;
    }
    at(layers_.x() + layers_.reducing());
    before_ -= layers_.head();
    kept_ += layers_.logits() + (deferring_ ? layers_.normed() : 0);
  }
  void block(int layer, Recompute what) {
    const BranchMemory attention = layers_.attention();
    const BranchMemory mlp = layers_.mlp(layer);
    // What runs again is here before its branch goes back; of a whole layer both branches.
    const int64_t attention_kept =
        what == Recompute::attention ? layers_.x() + layers_.kept_for_later() : attention.saved;
    before_ += attention_kept + mlp.saved - kept_by(layers_, layer, what);
    come_ += gradients_.layer;
    for (const BranchMemory* branch : {&mlp, &attention}) {
      if (branch == &attention) before_ += attention.saved - attention_kept;
      at(branch->working + (deferring_ ? branch->undropped : 0));
      before_ -= branch->saved;
      if (deferring_) kept_ += branch->deferred;
    }
    kept_ += layers_.first_given();
    given_ += layers_.first_given();
  }
  void mtp_entry() {
    at(3 * layers_.x());  // gradients of what the block takes, and behind both norms
    before_ -= layers_.mtp_entry();
    if (deferring_)
      kept_ += 3 * layers_.x() + layers_.normed();  // behind both, their gradient, the embedding's
  }
  // A gradient that waits for another one to be added to.
  void hold(int64_t bytes) { kept_ += bytes; }

  BackwardMemory result() const {
    const Live end = {kept_, 0, gradients_.all};
    return {end.sum() > peak_.sum() ? end : peak_, deferring_ ? kept_ - given_ : 0};
  }

 private:
  void at(int64_t working) {
    const Live now = {before_ + kept_, working, come_};
    if (now.sum() > peak_.sum()) peak_ = now;
  }

  const LayerMemory& layers_;
  int64_t before_;  // saved by what backward has not reached
  ChunkGradients gradients_;
  bool deferring_;
  int64_t come_ = 0;
  int64_t kept_ = 0;
  int64_t given_ = 0;  // of that, to slices before this one
  Live peak_;
};

BackwardMemory backward_memory(const LayerMemory& layers, const ModelConfig& c, const StagePart& part,
                               const Recomputation& again, const ChunkGradients& gradients, bool deferring) {
  BackwardWalk walk(layers, saved_by(layers, c, part, again), gradients, deferring);
  const auto block = [&](int layer) { walk.block(layer, again.of(layer - part.first_layer)); };
  if (part.predicts) {
    for (int layer = c.blocks(); layer-- > c.layers;) {
      walk.head();
      block(layer);
      walk.mtp_entry();
      if (layer + 1 == c.blocks()) walk.hold(layers.x());
    }
    walk.head();
    if (c.mtp > 0) walk.hold(-layers.x());
  }
  for (int layer = part.end_layer; layer-- > part.first_layer;) block(layer);
  return walk.result();
}

// What the forward of another microbatch has saved when a backward holds most. They change places where they
// wait, that is in MoE layers; without any the forward ends before the backward begins.
int64_t beside_backward(const LayerMemory& layers, const ModelConfig& c, const StagePart& part,
                        const Recomputation& again) {
  if (again.what != Recompute::none) return saved_by(layers, c, part, again);
  int64_t saved = 0;
  for (int i = part.first_layer; i < end_block(c, part); ++i) {
    if (i >= c.layers) saved += layers.head() + layers.mtp_entry();
    saved += layers.attention().saved;
    if (c.has_experts(i)) return saved + layers.norm() + layers.x();
    saved += layers.mlp(i).saved;
  }
  return saved + (part.predicts ? layers.head() : 0);
}

// The most that a rank's list holds at once.
Live peak_of(const Steps& steps, const LayerMemory& layers, const ModelConfig& c,
             const std::vector<StagePart>& parts, const Recomputation& again,
             const std::vector<ChunkGradients>& gradients) {
  std::map<std::pair<int, int>, int64_t> live;   // by chunk and microbatch, or slice
  std::map<std::pair<int, int>, int64_t> given;  // gradients of k and v from later slices, by microbatch
  StepGradients made(gradients);
  Live peak = {0, 0, made.sum()};
  const int slices = layers.slices();
  const auto part_of = [&](int chunk) { return parts[static_cast<size_t>(chunk)]; };
  const auto add = [&](const Live& now) {
    int64_t others = 0;
    for (const auto* held : {&live, &given}) {
      for (const auto& [passage, bytes] : *held) others += bytes;
    }
    const int64_t all = now.gradients + made.sum();
    if (others + now.saved + now.working + all > peak.sum()) peak = {others + now.saved, now.working, all};
  };
  for (const Step& s : steps) {
    if (s.goes_forward()) made.forward(s.chunk);
    if (s.op == StepOp::F) live[{s.chunk, s.microbatch}] = saved_by(layers, c, part_of(s.chunk), again);
    if (s.op == StepOp::W) made.made(s.chunk);
    if (s.goes_backward()) {
      const auto passage = std::pair(s.backward_chunk(), s.backward_microbatch());
      const StagePart part = part_of(passage.first);
      const int slice = passage.second % slices;
      const bool defers = s.op == StepOp::I;
      const ChunkGradients come = defers ? ChunkGradients() : made.backward(passage.first);
      const BackwardMemory backward = backward_memory(layers.at_slice(slice), c, part, again, come, defers);
      live.erase(passage);
      Live now = backward.peak;
      if (s.op == StepOp::FB) now.saved += beside_backward(layers, c, part_of(s.chunk), again);
      add(now);
      if (!defers) made.made(passage.first);
      if (backward.left > 0) live[passage] = backward.left;
      given[{passage.first, passage.second / slices}] =
          (end_block(c, part) - part.first_layer) * slice * layers.kv_gradients();
    }
    if (s.op == StepOp::FB) live[{s.chunk, s.microbatch}] = saved_by(layers, c, part_of(s.chunk), again);
    add({});
    if (s.op == StepOp::W) live.erase({s.chunk, s.microbatch});
  }
  return peak;
}

// Streams that are posted ahead, or kept until the next is sent (parallel/pipeline.h).
int64_t streams_of(const Schedule& schedule, int rank) {
  int64_t n = 0;
  for (int chunk = 0; chunk < schedule.chunks_per_rank; ++chunk) {
    for (const auto& other : {schedule.previous({rank, chunk}), schedule.next({rank, chunk})}) {
      if (other && other->rank != rank) n += 2;  // activations one way, gradients the other
    }
  }
  return n;
}

}  // namespace

namespace {

// Bytes of elements of weights, gradients and moments.
struct Kept {
  const TrainConfig& config;
  bool gpu = config.train.device == Device::Kind::cuda;
  bool narrow = config.train.weights == KeptWeights::bf16;

  // Of what layers compute with, and of the stream.
  DType compute() const { return gpu && narrow ? DType::bf16 : config.train.dtype; }
  int64_t wide(int64_t elements) const { return bytes(elements, config.train.dtype); }
  int64_t half(int64_t elements) const { return bytes(elements, DType::bf16); }
  int64_t fp8(int64_t elements) const { return bytes(elements, DType::f8e4m3); }
  DType gradient() const {
    return config.train.gradients == KeptWeights::bf16 ? DType::bf16 : config.train.dtype;
  }
  int64_t gradients(int64_t elements) const { return bytes(elements, gradient()); }
  int64_t moments(int64_t elements) const {
    return config.optimizer.moments == OptimizerConfig::Moments::bf16 ? half(elements) : wide(elements);
  }

 private:
  static int64_t bytes(int64_t elements, DType dtype) {
    return LayerMemory::block(elements, static_cast<int64_t>(dtype_size(dtype)));
  }
};

}  // namespace

MemoryAccount memory_account(const TrainConfig& config, int64_t vocabulary, int pp_rank) {
  ModelConfig model = config.model;
  model.vocabulary = vocabulary;
  const Layout layout = layout_of(config.parallel);
  const RowShare share = row_share(config.train.batch, config.train.microbatch, layout.dp, 0);
  const int slices = config.train.slices;
  const int64_t tokens = share.microbatch * (model.context / slices) / layout.cp;
  const Kept bytes{config};
  const LayerMemory layers =
      LayerMemory(model, bytes.compute(), tokens, slices, layout, stream_config(config.parallel),
                  ulysses_ranks(model, layout, config.parallel.ulysses))
          .with_loss_rows(loss_rows_of(config.train, vocabulary))
          .with_gathering(bytes.gpu);
  const Schedule schedule = schedule_of(config, share.microbatches());
  const std::vector<StagePart> parts =
      parts_of_rank(schedule, pp_rank, model.layers, stage_layers(config.parallel));

  const Elements elements = elements_of(model, layout, parts);
  const auto zero = static_cast<Zero>(config.parallel.zero);
  const int64_t own = shared_out(elements, layout, {.stage = zero, .shard = config.parallel.shard});
  const bool whole = zero < Zero::weights;
  const bool sums = zero >= Zero::gradients;  // into shares, unit by unit
  std::vector<ChunkGradients> gradients;
  for (const StagePart& part : parts) {
    const double left = sums ? static_cast<double>(own) / static_cast<double>(elements.all) : 1;
    gradients.push_back(chunk_gradients(model, layout, part, {.left = left, .dtype = bytes.gradient()}));
  }
  const Live peak = peak_of(schedule.steps[static_cast<size_t>(pp_rank)], layers, model, parts,
                            config.train.recompute, gradients);
  // Of ZeRO-2 and 3 beside the shares: of gradients the unit at work and the one that is being summed, of
  // weights that one and the one that comes next; with multi-token prediction the tables of its stage stay
  // meanwhile.
  MemoryAccount account;
  account.weights = bytes.wide(whole ? elements.all : own) +
                    (whole ? 0 : 2 * bytes.wide(elements.layer) + bytes.wide(elements.ends));
  if (bytes.narrow) {
    // In bf16, perhaps with a master copy; and wide, but on a GPU, the unit at work.
    const bool has_master = config.optimizer.master == OptimizerConfig::Master::same;
    const int64_t master = has_master && config.optimizer.offload.empty() ? bytes.wide(own) : 0;
    const int64_t kept = bytes.half(whole ? elements.all : own);
    const int64_t next = whole ? 0 : bytes.half(elements.layer);
    const int64_t at_work = bytes.wide(elements.layer) + bytes.wide(elements.ends);
    account.weights = kept + master + (bytes.gpu ? (whole ? 0 : at_work / 2) : at_work) + next;
  }
  for (const ChunkGradients& of_chunk : gradients) account.gradients += of_chunk.all;
  account.to_come = account.gradients - peak.gradients;
  if (sums) {
    account.gradients += 2 * bytes.gradients(elements.layer) + bytes.gradients(elements.ends) +
                         bytes.gradients(elements.over_stages);
  }
  const bool has_moments =
      config.optimizer.kind == OptimizerConfig::Kind::adamw && config.optimizer.offload.empty();
  account.optimizer = has_moments ? 2 * bytes.moments(own) : 0;
  account.batch = share.microbatches() * slices *
                  ((3 + 2 * model.mtp) * LayerMemory::block(tokens, 4) + LayerMemory::block(tokens, 8));
  account.activations = peak.saved + streams_of(schedule, pp_rank) * slices * layers.x();
  account.working = peak.working;
  // Blocks of the weights of the unit at work, at most; its rows are counted as if they were not quantised.
  if (config.train.products == Products::fp8) account.working += bytes.fp8(elements.layer);
  return account;
}

void check_memory(const MemoryAccount& account, uint64_t machine) {
  const auto bytes = [](int64_t n) { return human_bytes(static_cast<uint64_t>(n)); };
  if (static_cast<uint64_t>(account.kept()) <= machine) return;
  throw Error(
      "a rank's weights ({}), gradients ({}) and optimizer state ({}) are {} and this machine has {}; share "
      "them out (parallel.zero=3, pp, tp, ep), keep less (train.weights=bf16, optimizer.moments=bf16, "
      "optimizer.offload=DIR) or take a smaller model.width or fewer model.layers",
      bytes(account.weights), bytes(account.gradients), bytes(account.optimizer), bytes(account.kept()),
      human_bytes(machine));
}

namespace {

// Of ranks that share a GPU, all together.
MemoryAccount account_of(const TrainConfig& config, int64_t vocabulary, std::span<const int> pp_ranks) {
  std::map<int, MemoryAccount> by_stage;
  MemoryAccount sum;
  for (const int pp_rank : pp_ranks) {
    const auto [at, is_new] = by_stage.try_emplace(pp_rank);
    if (is_new) at->second = memory_account(config, vocabulary, pp_rank);
    for (const auto part : {&MemoryAccount::weights, &MemoryAccount::gradients, &MemoryAccount::to_come,
                            &MemoryAccount::optimizer, &MemoryAccount::batch, &MemoryAccount::activations,
                            &MemoryAccount::working}) {
      sum.*part += at->second.*part;
    }
  }
  return sum;
}

// The settings nearest to the config's with which the ranks fit into so many bytes; "" if none do.
std::string what_fits(const TrainConfig& config, int64_t vocabulary, std::span<const int> pp_ranks,
                      int64_t room) {
  for (const Recompute what : {config.train.recompute.what, Recompute::full}) {
    TrainConfig other = config;
    other.train.recompute = {.what = what};
    for (int64_t rows = config.train.microbatch; rows > 0; --rows) {
      if (config.train.microbatch % rows != 0) continue;
      other.train.microbatch = rows;
      if (account_of(other, vocabulary, pp_ranks).total() > room) continue;
      const bool again = what != config.train.recompute.what;
      return format("it fits with train.microbatch={}{}", rows, again ? " and train.recompute=full" : "");
    }
  }
  return {};
}

}  // namespace

void check_gpu_memory(const TrainConfig& config, int64_t vocabulary, std::span<const int> pp_ranks,
                      uint64_t bytes) {
  constexpr int64_t kOfCuda = int64_t{1} << 30;  // its context, kernels and the libraries' workspaces
  const MemoryAccount account = account_of(config, vocabulary, pp_ranks);
  const int64_t room = static_cast<int64_t>(bytes) - kOfCuda;
  if (account.total() <= room) return;
  const std::string fits = what_fits(config, vocabulary, pp_ranks, room);
  throw Error(
      "a step{} needs about {} of the GPU, which has {}: weights, gradients and optimizer state {}, "
      "activations {}; {}",
      pp_ranks.size() == 1 ? "" : format(" of the {} ranks that share it", pp_ranks.size()),
      human_bytes(static_cast<uint64_t>(account.total() + kOfCuda)), human_bytes(bytes),
      human_bytes(static_cast<uint64_t>(account.kept())),
      human_bytes(static_cast<uint64_t>(account.activations + account.working)),
      fits.empty() ? "take a smaller model.width or fewer model.layers" : fits);
}

}  // namespace phalanx
