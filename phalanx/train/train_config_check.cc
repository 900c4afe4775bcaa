// Which values of a config fit each other.
#include <charconv>

#include "phalanx/base/error.h"
#include "phalanx/model/stage.h"
#include "phalanx/train/layout_choice.h"
#include "phalanx/train/train_config.h"

namespace phalanx {
namespace {

// Error: ranks of cp and tp cannot share the rows of a microbatch.
void check_rows(const TrainConfig& c, const Layout& layout) {
  const int64_t rows = c.train.microbatch * c.model.context;
  if (rows % layout.cp != 0) {
    throw Error(
        "train.microbatch {} · model.context {} = {} rows are not divisible by cp = {} of parallel.layout",
        c.train.microbatch, c.model.context, rows, layout.cp);
  }
  const int tp = layout.tp;
  const bool shared = c.parallel.sequence || c.model.mlp == MlpKind::moe;
  if (tp == 1 || !shared || rows / layout.cp % tp == 0) return;
  const char* hint = c.model.mlp == MlpKind::moe ? "" : "; without parallel.sequence they need not be";
  throw Error(
      "train.microbatch {} · model.context {} = {} rows are not divisible by cp·tp = {} of parallel.layout{}",
      c.train.microbatch, c.model.context, rows, layout.cp * tp, hint);
}

// Error: the sequences cannot be cut into so many slices, or the ranks cannot share the rows of one. Tells
// some numbers that fit, of which 1 is one.
void check_slices(const TrainConfig& c, const Layout& layout) {
  constexpr int kMost = 64;
  const bool shared = c.parallel.sequence || c.model.mlp == MlpKind::moe;
  const int sharers = layout.cp * (shared ? layout.tp : 1);
  const auto fits = [&](int n) {
    return c.model.context % n == 0 && c.train.microbatch * (c.model.context / n) % sharers == 0;
  };
  if (fits(c.train.slices)) return;
  std::string fitting;
  for (int n = 1; n <= kMost; ++n) {
    if (fits(n)) fitting += (n == 1 ? "" : ", ") + format("{}", n);
  }
  throw Error(
      "train.slices {} must divide model.context {}, and the train.microbatch {} · context / slices rows of "
      "a "
      "slice must be divisible by the {} ranks of cp and tp that share them: up to {} these fit: {}",
      c.train.slices, c.model.context, c.train.microbatch, sharers, kMost, fitting);
}

// Fills in the schedule. Error: it cannot run with so many stages, microbatches and layers.
void check_pipeline(TrainConfig& c, const Layout& layout, int64_t microbatches) {
  if (c.train.schedule.empty()) c.train.schedule = layout.pp > 1 ? "1f1b" : "sequential";
  Schedule schedule;
  try {
    schedule = schedule_of(c, microbatches);
  } catch (const Error& e) {
    throw Error("train.schedule \"{}\" with pp = {} and {} microbatches a step: {}", c.train.schedule,
                layout.pp, microbatches, e.what());
  }
  const std::vector<int> given = stage_layers(c.parallel);
  if (given.empty() && schedule.stages() > c.model.layers) {
    throw Error(
        "{} stages (train.schedule {} on pp = {} of parallel.layout) for model.layers {}: each has at least "
        "one; take a smaller pp or fewer parallel.chunks, or say with parallel.layers which are empty",
        schedule.stages(), c.train.schedule, layout.pp, c.model.layers);
  }
  try {
    cut_into_stages(c.model.layers, schedule.stages(), given);
  } catch (const Error& e) {
    throw Error("parallel.layers \"{}\": {}", c.parallel.layers, e.what());
  }
}

// Error: narrow moments where there are none, or beside f64.
void check_moments(const TrainConfig& c) {
  if (c.optimizer.moments == OptimizerConfig::Moments::same) return;
  if (c.optimizer.kind != OptimizerConfig::Kind::adamw || c.train.dtype != DType::f32) {
    throw Error("optimizer.moments bf16 is for optimizer.kind adamw and train.dtype f32");
  }
}

// Error: no master copy where AdamW does not update bf16 from f32.
void check_master(const TrainConfig& c) {
  if (c.optimizer.master == OptimizerConfig::Master::same) return;
  if (c.optimizer.kind != OptimizerConfig::Kind::adamw || c.train.dtype != DType::f32 ||
      c.train.weights != KeptWeights::bf16) {
    throw Error("optimizer.master none is for optimizer.kind adamw, train.dtype f32 and train.weights bf16");
  }
}

// Error: a combination that GPUs do not compute yet.
void check_device(const TrainConfig& c, const Layout& layout) {
  const bool on_cpu = c.train.device == Device::Kind::cpu;
  if (c.train.gradients == KeptWeights::bf16 && (on_cpu || c.train.weights != KeptWeights::bf16)) {
    throw Error("train.gradients bf16 is for train.device cuda with train.weights bf16");
  }
  if (c.train.products == Products::fp8 && c.train.dtype == DType::f64) {
    throw Error("train.products fp8 is for train.dtype f32");
  }
  if (c.train.gradients == KeptWeights::bf16 && c.optimizer.kind != OptimizerConfig::Kind::adamw) {
    throw Error("train.gradients bf16 is for optimizer.kind adamw");
  }
  if (on_cpu && c.parallel.transport == TransportKind::nccl) {
    throw Error("parallel.transport nccl is for train.device cuda");
  }
  if (on_cpu) return;
  const auto refuse = [](std::string_view what) {
    throw Error("train.device cuda: {} is for CPUs so far", what);
  };
  const bool parts = layout.ep > 1 || layout.etp > 1;
  if (c.model.moe.exact_sums && parts) refuse("moe.exact_sums with ep or etp in parallel.layout");
}

Layout parsed(const std::string& layout) {
  try {
    return Layout::parse(layout);
  } catch (const Error& e) {
    throw Error("parallel.layout: {}", e.what());
  }
}

}  // namespace

Layout layout_of(const ParallelConfig& config) {
  Layout layout = parsed(config.layout);
  if (config.ranks > 0 && config.layout.find("dp=") == std::string::npos) {
    layout.dp = std::max(1, config.ranks / layout.ranks());
  }
  if (config.ranks > 0 && layout.ranks() != config.ranks) {
    throw Error(
        "parallel.layout \"{}\" does not fit parallel.ranks {}: its axes pp, dp, cp and tp make {} ranks",
        config.layout, config.ranks, layout.ranks());
  }
  const int stage_ranks = layout.dp * layout.cp * layout.tp;
  if (stage_ranks % (layout.ep * layout.etp) != 0) {
    throw Error(
        "parallel.layout \"{}\": ep·etp = {} does not divide the dp·cp·tp = {} ranks that share the experts",
        config.layout, layout.ep * layout.etp, stage_ranks);
  }
  return layout;
}

int64_t loss_rows_of(const RunConfig& run, int64_t vocabulary) {
  if (run.loss_rows > 0) return run.loss_rows;
  if (run.device == Device::Kind::cpu) return 0;
  constexpr int64_t kLogits = int64_t{1} << 29;
  constexpr int64_t kStep = 256;  // whole tiles of products
  return std::max(kStep, kLogits / std::max<int64_t>(1, vocabulary) / kStep * kStep);
}

std::vector<int> stage_layers(const ParallelConfig& config) {
  std::vector<int> layers;
  const std::string& text = config.layers;
  for (size_t at = 0; at < text.size();) {
    const std::string_view item = std::string_view(text).substr(at, text.find(',', at) - at);
    at += item.size() + 1;
    int n = -1;
    const char* end = item.data() + item.size();
    if (std::from_chars(item.data(), end, n).ptr != end || n < 0 || at == text.size()) {
      throw Error("parallel.layers \"{}\" is not a list of numbers, as in 3,4,5", text);
    }
    layers.push_back(n);
  }
  return layers;
}

Schedule schedule_of(const TrainConfig& config, int64_t microbatches) {
  const int pp = layout_of(config.parallel).pp;
  return make_schedule(config.train.schedule, {.ranks = pp,
                                               .microbatches = static_cast<int>(microbatches),
                                               .chunks = config.parallel.chunks,
                                               .slices = config.train.slices});
}

namespace {

// Error: experts cannot change places.
void check_rebalancing(const TrainConfig& c) {
  if (c.parallel.rebalance_every == 0) return;
  const auto refuse = [&](const char* why) {
    throw Error("parallel.rebalance_every {} moves experts between ranks: {}", c.parallel.rebalance_every,
                why);
  };
  if (c.model.mlp != MlpKind::moe) refuse("it needs model.mlp = \"moe\"");
  if (!c.model.moe.exact_sums) {
    refuse("set moe.exact_sums = true, or results would depend on where experts are");
  }
  if (c.parallel.zero != 0) refuse("it needs parallel.zero = 0");
  if (c.model.moe.share_layers > 1) refuse("it needs moe.share_layers = 1");
}

// Error: sums are wanted in two orders.
void check_sums(const MoeConfig& moe) {
  if (!moe.exact_sums || !moe.two_level) return;
  throw Error(
      "moe.two_level sums inside hosts first, so that sums depend on where experts are: set "
      "moe.exact_sums = false, or moe.two_level = false");
}

// Fills in what follows from the layout. Error: the rest does not fit it.
TrainConfig laid_out(TrainConfig c, const Layout& layout) {
  c.parallel.layout = layout.text();
  c.parallel.ranks = layout.ranks();
  const std::string why = misfit(c.model, layout, c.parallel.ulysses);
  if (!why.empty()) throw Error("parallel.layout \"{}\": {}", c.parallel.layout, why);
  c.parallel.ulysses = ulysses_ranks(c.model, layout, c.parallel.ulysses);
  const RowShare share = row_share(c.train.batch, c.train.microbatch, layout.dp, 0);
  c.train.microbatch = share.microbatch;
  check_pipeline(c, layout, share.microbatches());
  check_rebalancing(c);
  check_sums(c.model.moe);
  check_rows(c, layout);
  check_slices(c, layout);
  return c;
}

}  // namespace

TrainConfig checked(TrainConfig c) {
  c.model = resolved(c.model);
  if (c.model.moe.dense_layers > c.model.layers) {
    throw Error("moe.dense_layers {} are more than model.layers {}", c.model.moe.dense_layers,
                c.model.layers);
  }
  if (c.lr.decay != Decay::constant && c.lr.min_lr > c.lr.lr) {
    throw Error("optimizer.min_lr {} is above optimizer.lr {}", c.lr.min_lr, c.lr.lr);
  }
  const Layout layout = layout_of(c.parallel);
  check_moments(c);
  check_master(c);
  check_device(c, layout);
  const bool on_gpu = c.train.device == Device::Kind::cuda;
  if (on_gpu && c.parallel.transport != TransportKind::threads) c.parallel.transport = TransportKind::nccl;
  try {
    return laid_out(c, layout);
  } catch (const Error& e) {
    const auto fits = [&c](const Layout& other) {
      try {
        laid_out(c, other);
        return true;
      } catch (const Error&) {
        return false;
      }
    };
    throw Error("{}{}", e.what(), other_layouts(c.model, layout, fits));
  }
}

}  // namespace phalanx
