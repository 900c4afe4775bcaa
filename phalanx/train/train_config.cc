#include "phalanx/train/train_config.h"

#include <cmath>

#include "phalanx/base/error.h"
#include "phalanx/base/file.h"

namespace phalanx {
namespace {

constexpr uint64_t kLargestFile = uint64_t{1} << 20;

// Far beyond any model, and such that no count of parameters or rows overflows.
constexpr double kLayers = 1 << 10;
constexpr double kHidden = 1 << 20;
constexpr double kExperts = 1 << 14;
constexpr double kSequences = 1 << 20;
constexpr double kSteps = 1e12;
constexpr double kLossRows = 1 << 24;
constexpr double kSlices = 1 << 12;

void add_mla(ConfigSection& s, MlaConfig& m) {
  s.add("q_lora_rank", &m.q_lora_rank, "mla: width of the queries' latent; 0: none")
      .at_least(0)
      .at_most(1 << 17);
  s.add("kv_lora_rank", &m.kv_lora_rank, "mla: of keys' and values'; 0: 4 qk_nope_head_dim")
      .at_least(0)
      .at_most(1 << 17);
  s.add("qk_nope_head_dim", &m.qk_nope_head_dim, "mla: columns of q and k without rope; 0: width / heads")
      .at_least(0)
      .at_most(1 << 14);
  s.add("qk_rope_head_dim", &m.qk_rope_head_dim, "mla: those with rope; 0: qk_nope_head_dim / 2")
      .at_least(0)
      .at_most(1 << 14);
  s.add("v_head_dim", &m.v_head_dim, "mla: columns of v; 0: qk_nope_head_dim").at_least(0).at_most(1 << 14);
}

void add_yarn(ConfigSection& s, Yarn& y) {
  s.add("rope_factor", &y.factor, "YaRN: times the context that rope was trained on; 1: none").at_least(1);
  s.add("rope_original_context", &y.original_context,
        "YaRN: that context, in tokens; 0: context / rope_factor")
      .at_least(0);
  s.add("rope_beta_fast", &y.beta_fast, "YaRN: turns in it from which a frequency stays").above(0);
  s.add("rope_beta_slow", &y.beta_slow, "YaRN: turns up to which it is divided by rope_factor").above(0);
  s.add("rope_mscale", &y.mscale, "YaRN: growth of q and k, as in DeepSeek's config; 0: the paper's")
      .at_least(0);
  s.add("rope_mscale_all_dim", &y.mscale_all_dim, "YaRN: its divisor; with mla also of the scores")
      .at_least(0);
}

void add_model(ConfigTable& table, ModelConfig& m) {
  ConfigSection& s = table.section("model", "A decoder; its vocabulary is made from the text.");
  s.add("layers", &m.layers, "blocks of attention and MLP").at_least(1).at_most(kLayers);
  s.add("width", &m.width, "of the residual stream").at_least(1).at_most(1 << 17);
  s.add("heads", &m.heads, "query heads").at_least(1).at_most(1 << 12);
  s.add("kv_heads", &m.kv_heads, "key and value heads; 0: as many as heads").at_least(0).at_most(1 << 12);
  s.add("head_dim", &m.head_dim, "width of a head of q and k; 0: width / heads").at_least(0).at_most(1 << 14);
  s.add("context", &m.context, "tokens of a sequence").at_least(1).at_most(1 << 24);
  s.choice("norm", &m.norm, {{"layernorm", NormKind::layernorm}, {"rmsnorm", NormKind::rmsnorm}},
           "before attention, before the MLP and at the end");
  s.add("norm_eps", &m.norm_eps, "added to the variance").above(0);
  s.choice("positions", &m.positions, {{"learned", Positions::learned}, {"rope", Positions::rope}},
           "a learned table, or rotated queries and keys");
  s.add("rope_theta", &m.rope_theta, "base of the rotation").above(0);
  s.choice("mlp", &m.mlp,
           {{"gelu", MlpKind::gelu},
            {"gelu_tanh", MlpKind::gelu_tanh},
            {"swiglu", MlpKind::swiglu},
            {"moe", MlpKind::moe}},
           "gelu by erf or tanh, gated, or a mixture of experts ([moe])");
  s.add("mlp_width", &m.mlp_width, "hidden width of a dense MLP; 0: 4 width").at_least(0).at_most(kHidden);
  s.add("bias", &m.bias, "in linear layers and layer norms");
  s.add("tied", &m.tied, "the output head is the embedding");
  s.add("dropout", &m.dropout, "probability, on the embedding and each branch").at_least(0).below(1);
  s.add("init_std", &m.init_std, "standard deviation of initial weights; 0: sqrt(2 / (5 width))").at_least(0);
  s.choice("attention", &m.attention, {{"gqa", AttentionKind::gqa}, {"mla", AttentionKind::mla}},
           "grouped KV heads, or latent (MLA)");
  add_mla(s, m.mla);
  add_yarn(s, m.yarn);
  s.add("mtp", &m.mtp, "depths of multi-token prediction, in training").at_least(0).at_most(16);
  s.add("mtp_weight", &m.mtp_weight, "of the mean of their losses").at_least(0);
}

void add_moe(ConfigTable& table, MoeConfig& m) {
  ConfigSection& s = table.section("moe", "The experts of mlp = \"moe\".");
  s.add("experts", &m.experts, "in a layer").at_least(1).at_most(kExperts);
  s.add("top_k", &m.top_k, "experts of a token").at_least(1).at_most(kExperts);
  s.add("expert_width", &m.expert_width, "hidden width of an expert; 0: mlp_width / top_k")
      .at_least(0)
      .at_most(kHidden);
  s.add("shared_experts", &m.shared_experts, "more experts, which every token sees")
      .at_least(0)
      .at_most(1 << 10);
  s.add("dense_layers", &m.dense_layers, "first layers that have a dense MLP instead")
      .at_least(0)
      .at_most(kLayers);
  s.add("share_layers", &m.share_layers, "neighbouring layers that use the same experts")
      .at_least(1)
      .at_most(kLayers);
  s.choice("scores", &m.scores, {{"softmax", Scores::softmax}, {"sigmoid", Scores::sigmoid}},
           "of the router's logits");
  s.add("normalise", &m.normalise, "the chosen weights sum to one");
  s.add("scaling", &m.scaling, "factor of the chosen weights").above(0);
  s.add("balance_loss", &m.balance_loss, "coefficient of the balance loss").at_least(0);
  s.add("z_loss", &m.z_loss, "coefficient of the router z-loss").at_least(0);
  s.add("bias_rate", &m.bias_rate, "change of a bias by which experts are chosen, a step; 0: none")
      .at_least(0);
  s.add("capacity", &m.capacity, "tokens an expert takes of a sequence, in even loads; 0: all that choose it")
      .at_least(0);
  s.add("exact_sums", &m.exact_sums, "sums do not depend on which rank has which expert; more rows travel");
  s.add("two_level", &m.two_level,
        "a token's row goes once to each host, and sums are made inside hosts first");
  s.add("groups", &m.groups, "equal groups of experts").at_least(1).at_most(kExperts);
  s.add("top_groups", &m.top_groups, "groups that a token's experts come from").at_least(1).at_most(kExperts);
}

void add_data(ConfigTable& table, DataConfig& d) {
  ConfigSection& s = table.section("data", "The text.");
  s.add("text", &d.text, "file that is learnt");
  s.choice("tokenizer", &d.tokenizer,
           {{"char", TokenizerKind::characters}, {"byte", TokenizerKind::bytes}, {"bpe", TokenizerKind::bpe}},
           "made from the text");
  s.add("bpe_vocabulary", &d.bpe_vocabulary, "tokens of a bpe vocabulary, at most")
      .at_least(256)
      .at_most(1 << 20);
  s.add("documents", &d.documents, "text behind which a document ends, seen from no other; empty: it is one");
  s.add("validation_fraction", &d.validation_fraction, "of the characters, at the end").at_least(0).below(1);
}

void add_run(ConfigTable& table, RunConfig& r) {
  ConfigSection& s = table.section("train", "The run.");
  s.add("steps", &r.steps, "optimizer steps").at_least(1).at_most(kSteps);
  s.add("batch", &r.batch, "sequences of a step, over all ranks").at_least(1).at_most(kSequences);
  s.add("microbatch", &r.microbatch, "sequences of one rank at a time; 0: all of its share")
      .at_least(0)
      .at_most(kSequences);
  s.add("seed", &r.seed, "of initial values, dropout and the draw of sequences");
  s.choice("device", &r.device, {{"cpu", Device::Kind::cpu}, {"cuda", Device::Kind::cuda}},
           "where ranks compute: on cores, or on NVIDIA GPUs");
  s.choice("dtype", &r.dtype, {{"f32", DType::f32}, {"f64", DType::f64}}, "of weights and arithmetic");
  s.choice("weights", &r.weights, {{"same", KeptWeights::same}, {"bf16", KeptWeights::bf16}},
           "kept and sent in dtype, or in bf16 (what GPUs then compute in) with a master copy");
  s.choice("gradients", &r.gradients, {{"same", KeptWeights::same}, {"bf16", KeptWeights::bf16}},
           "summed in dtype, or, on GPUs with weights in bf16, in bf16: of few microbatches");
  s.choice("products", &r.products, {{"same", Products::same}, {"fp8", Products::fp8}},
           "of linear layers: in the dtype of the rest, or in FP8 as DeepSeek-V3's");
  s.add("deterministic", &r.deterministic,
        "the same bits in every run; false: on GPUs faster attention, tuned products");
  s.add("blocking", &r.blocking, "on a GPU: wait for each op, so that a fault names the op");
  s.add("loss_rows", &r.loss_rows, "tokens with logits at once; 0: GPUs 1 GiB's, CPUs all")
      .at_least(0)
      .at_most(kLossRows);
  s.add("schedule", &r.schedule, "of microbatches; empty: sequential, with pp > 1 1f1b");
  s.add("slices", &r.slices, "parts of each microbatch, along its sequences").at_least(1).at_most(kSlices);
  s.choice("recompute", &r.recompute.what,
           {{recompute_name(Recompute::none), Recompute::none},
            {recompute_name(Recompute::attention), Recompute::attention},
            {recompute_name(Recompute::mlp), Recompute::mlp},
            {recompute_name(Recompute::full), Recompute::full}},
           "of a layer what backward runs again");
  s.add("recompute_layers", &r.recompute.layers, "layers of a stage, the first, that do so; 0: all")
      .at_least(0)
      .at_most(kLayers);
  s.add("eval_every", &r.eval_every, "steps between evaluations; 0: only at the end")
      .at_least(0)
      .at_most(kSteps);
  s.add("eval_batches", &r.eval_batches, "batches of an evaluation; 0: the whole validation part")
      .at_least(0)
      .at_most(100'000);
  s.add("save_every", &r.save_every, "steps between checkpoints; 0: only at the end")
      .at_least(0)
      .at_most(kSteps);
  s.add("keep", &r.keep, "newest checkpoints that stay; 0: all").at_least(0).at_most(1 << 20);
  s.add("out", &r.out, "directory of the checkpoints");
  s.add("init", &r.init, "Hugging Face directory whose model a run starts from; empty: drawn by seed");
}

void add_optimizer(ConfigTable& table, TrainConfig& c) {
  using Kind = OptimizerConfig::Kind;
  using Moments = OptimizerConfig::Moments;
  using Master = OptimizerConfig::Master;
  ConfigSection& s = table.section("optimizer", "The update and its learning rate.");
  s.choice("kind", &c.optimizer.kind, {{"adamw", Kind::adamw}, {"sgd", Kind::sgd}}, "update rule");
  s.choice("moments", &c.optimizer.moments, {{"same", Moments::same}, {"bf16", Moments::bf16}},
           "AdamW's are kept in train.dtype, or rounded to nearest in bf16");
  s.choice("master", &c.optimizer.master, {{"same", Master::same}, {"none", Master::none}},
           "copy of bf16 weights: in train.dtype; none: AdamW rounds stochastically");
  s.add("lr", &c.lr.lr, "learning rate after the warm-up").above(0);
  s.add("min_lr", &c.lr.min_lr, "learning rate at the end of the decay").at_least(0);
  s.add("warmup", &c.lr.warmup, "steps of linear growth").at_least(0).at_most(kSteps);
  s.add("decay_steps", &c.lr.decay_steps, "step at which min_lr is reached; 0: train.steps")
      .at_least(0)
      .at_most(kSteps);
  s.choice("decay", &c.lr.decay,
           {{"cosine", Decay::cosine}, {"linear", Decay::linear}, {"constant", Decay::constant}},
           "after the warm-up");
  s.add("beta1", &c.optimizer.beta1, "of AdamW's mean").at_least(0).below(1);
  s.add("beta2", &c.optimizer.beta2, "of AdamW's mean square").at_least(0).below(1);
  s.add("eps", &c.optimizer.eps, "of AdamW").above(0);
  s.add("weight_decay", &c.optimizer.weight_decay, "decoupled, on matrices").at_least(0);
  s.add("clip", &c.clip, "largest gradient norm; 0: no limit").at_least(0);
  s.add("overlap", &c.optimizer.overlap,
        "on a GPU: update weights beside the next forward, which waits for them");
  s.add("offload", &c.optimizer.offload,
        "directory for files that hold moments and master copy; empty: memory");
}

void add_parallel(ConfigTable& table, ParallelConfig& p) {
  ConfigSection& s = table.section("parallel", "The ranks.");
  s.add("ranks", &p.ranks, "number of ranks; 0: those of the layout").at_least(0).at_most(1 << 16);
  s.add("layout", &p.layout, "sizes of the axes, as in dp=4,ep=2; dp may be left out");
  s.add("sequence", &p.sequence, "sequence parallelism: between layers each rank of tp has its own rows");
  s.add("tp_overlap", &p.tp_overlap,
        "cut products next to a gather or a sum over tp, so that chunks travel meanwhile");
  s.add("ulysses", &p.ulysses, "ranks of cp that exchange heads, in a ring; 0: the most")
      .at_least(0)
      .at_most(1 << 16);
  s.add("rebalance_every", &p.rebalance_every, "steps between moves of experts; 0: none")
      .at_least(0)
      .at_most(kSteps);
  s.add("rebalance_window", &p.rebalance_window, "steps whose loads decide about that; 0: all since the last")
      .at_least(0)
      .at_most(1 << 16);
  s.add("rebalance_moves", &p.rebalance_moves, "experts that may move at once, on a stage; 0: all")
      .at_least(0)
      .at_most(1 << 20);
  s.add("zero", &p.zero, "ZeRO's stage: 1 shares out moments, 2 gradients, 3 weights").at_least(0).at_most(3);
  s.add("shard", &p.shard, "ranks that share one copy; 0: all").at_least(0).at_most(1 << 16);
  s.add("chunks", &p.chunks, "stages on each rank of pp; 0: as the schedule has")
      .at_least(0)
      .at_most(kLayers);
  s.add("layers", &p.layers, "of each stage, as in 3,4,5; empty: cut evenly");
  s.choice("transport", &p.transport,
           {{"threads", TransportKind::threads},
            {"process", TransportKind::process},
            {"mpi", TransportKind::mpi},
            {"nccl", TransportKind::nccl}},
           "how ranks reach each other, unless a launcher decides");
  s.add("progress_timeout", &p.progress_timeout, "seconds in which a waiting rank must get a step further")
      .above(0);
  s.add("liveness_timeout", &p.liveness_timeout, "seconds of silence after which a process is taken for dead")
      .above(0);
}

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(std::llround(std::min(seconds, 1e9) * 1e3));
}

}  // namespace

ConfigTable train_table(TrainConfig& config) {
  ConfigTable table;
  add_model(table, config.model);
  add_moe(table, config.model.moe);
  add_data(table, config.data);
  add_run(table, config.train);
  add_optimizer(table, config);
  add_parallel(table, config.parallel);
  return table;
}

TrainConfig parse_train_config(std::string_view toml, const std::string& name,
                               std::span<const std::string> overrides) {
  TrainConfig config;
  ConfigTable table = train_table(config);
  table.read(toml, name);
  for (const std::string& assignment : overrides) table.set(assignment);
  try {
    return checked(config);
  } catch (const Error& e) {
    const std::string place = table.place_of(e.what());
    throw Error("{}: {}", place.empty() ? name : place, e.what());
  }
}

TrainConfig load_train_config(const std::string& path, std::span<const std::string> overrides) {
  return parse_train_config(read_text(path, kLargestFile), path, overrides);
}

std::string to_toml(const TrainConfig& config) {
  TrainConfig copy = config;
  return train_table(copy).toml();
}

LaunchOptions launch_options(const ParallelConfig& config) {
  return {.transport = config.transport,
          .ranks = config.ranks,
          .deadlines = {.progress = milliseconds(config.progress_timeout),
                        .liveness = milliseconds(config.liveness_timeout)}};
}

}  // namespace phalanx
