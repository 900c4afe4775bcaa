#include "tests/train/step_models.h"

namespace phalanx {
namespace {

ModelConfig base_config() {
  ModelConfig c;
  c.vocabulary = 11;
  c.layers = 2;
  c.width = 12;
  c.heads = 3;
  c.context = 7;
  c.mlp_width = 10;
  c.init_std = 0.3;  // far from uniform, so that routing and attention matter
  return c;
}

}  // namespace

ModelConfig gpt() {
  ModelConfig c = base_config();
  c.norm = NormKind::layernorm;
  c.positions = Positions::learned;
  c.mlp = MlpKind::gelu;
  c.bias = true;
  return c;
}

ModelConfig llama() {
  ModelConfig c = base_config();
  c.kv_heads = 1;
  c.tied = false;
  return c;
}

ModelConfig mla() {
  ModelConfig c = base_config();
  c.attention = AttentionKind::mla;
  c.heads = 4;
  c.mla = {6, 5, 3, 2, 4};  // widths of latents; columns of a head without and with rope, and of v
  return c;
}

ModelConfig moe() {
  ModelConfig c = llama();
  c.mlp = MlpKind::moe;
  c.layers = 3;
  c.moe = {.experts = 4, .top_k = 2, .expert_width = 5, .shared_experts = 1, .dense_layers = 1};
  return c;
}

ModelConfig sigmoid_moe_with_dropout() {
  ModelConfig c = moe();
  c.moe.scores = Scores::sigmoid;
  c.moe.scaling = 1.5;
  c.moe.shared_experts = 0;
  c.dropout = 0.2;
  return c;
}

ModelConfig divisible(ModelConfig c) {
  c.heads = 4;
  if (c.attention == AttentionKind::gqa) c.head_dim = 4;
  c.mlp_width = 12;
  if (c.kv_heads > 0) c.kv_heads = 2;  // fewer than four ranks
  c.moe.expert_width = 8;
  return c;
}

ModelConfig six_tokens(ModelConfig c) {
  c = divisible(c);
  c.context = 6;
  return c;
}

ModelConfig with_vocabulary(ModelConfig c, int64_t vocabulary) {
  c.vocabulary = vocabulary;
  return c;
}

ModelConfig with_one_kv_head(ModelConfig c) {
  c.kv_heads = 1;
  return c;
}

ModelConfig with_every_routing_loss(ModelConfig c) {
  c.moe.balance_loss = 0.05;
  c.moe.z_loss = 0.02;
  c.moe.bias_rate = 0.02;
  c.moe.capacity = 0.9;
  return c;
}

ModelConfig with_dropout(ModelConfig c) {
  c.dropout = 0.2;
  return c;
}

ModelConfig with_mtp(ModelConfig c) {
  c.mtp = 2;
  c.mtp_weight = 0.6;
  return c;
}

}  // namespace phalanx
