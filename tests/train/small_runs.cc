#include "tests/train/small_runs.h"

#include <random>

namespace phalanx {
namespace {

TrainConfig small(const Layout& layout, const char* schedule) {
  TrainConfig c;
  c.model.layers = 4;
  c.model.width = 32;
  c.model.heads = 4;
  c.model.context = 32;
  c.train.batch = 8;
  c.train.microbatch = 2;
  c.train.schedule = schedule;
  c.parallel.ranks = layout.ranks();
  c.parallel.layout = layout.text();
  return c;
}

}  // namespace

TrainConfig small_gpt(const Layout& layout, const char* schedule) {
  TrainConfig c = small(layout, schedule);
  c.model.norm = NormKind::layernorm;
  c.model.positions = Positions::learned;
  c.model.mlp = MlpKind::gelu;
  c.model.bias = true;
  return checked(c);
}

TrainConfig small_llama(const Layout& layout, const char* schedule) {
  TrainConfig c = small(layout, schedule);
  c.model.kv_heads = 2;
  c.model.tied = false;
  return checked(c);
}

TrainConfig small_mla(const Layout& layout, const char* schedule) {
  TrainConfig c = small(layout, schedule);
  c.model.attention = AttentionKind::mla;
  c.model.mla = {
      .q_lora_rank = 20, .kv_lora_rank = 24, .qk_nope_head_dim = 12, .qk_rope_head_dim = 8, .v_head_dim = 16};
  return checked(c);
}

TrainConfig small_mla_of_gpus(const Layout& layout, const char* schedule) {
  TrainConfig c = small_mla(layout, schedule);
  c.model.mla.qk_nope_head_dim = 24;
  c.model.head_dim = 0;
  return checked(c);
}

TrainConfig small_moe(const Layout& layout, const char* schedule) {
  TrainConfig c = small(layout, schedule);
  c.model.mlp = MlpKind::moe;
  c.model.moe = {.experts = 8, .top_k = 2, .expert_width = 24, .shared_experts = 1, .dense_layers = 1};
  return checked(c);
}

TrainConfig small_mtp(const Layout& layout, const char* schedule) {
  TrainConfig c = small_moe(layout, schedule);
  c.model.mtp = 2;
  return c;
}

Dataset random_text(const TrainConfig& config, unsigned seed) {
  std::mt19937 random(seed);
  std::string text;
  for (int i = 0; i < 8000; ++i) text += static_cast<char>('!' + random() % 60);
  return {text, config.data, config.model.context, config.train.seed};
}

}  // namespace phalanx
