#include "phalanx/model/hf_names.h"

#include <map>
#include <string_view>

#include "phalanx/base/text.h"

namespace phalanx {
namespace {

// E experts, F hidden width, D model width.

using Names = std::map<std::string_view, std::string_view>;

// Ours to theirs: of the whole model, and behind "layers.N.".
const Names kGpt2Model = {{"embedding.w", "transformer.wte.weight"},
                          {"positions.w", "transformer.wpe.weight"},
                          {"norm.w", "transformer.ln_f.weight"},
                          {"norm.b", "transformer.ln_f.bias"},
                          {"head.w", "lm_head.weight"}};
const Names kGpt2Layer = {{"attention_norm", "ln_1"},     {"mlp_norm", "ln_2"},
                          {"attention.q", "attn.c_attn"}, {"attention.k", "attn.c_attn"},
                          {"attention.v", "attn.c_attn"}, {"attention.o", "attn.c_proj"},
                          {"mlp.up", "mlp.c_fc"},         {"mlp.down", "mlp.c_proj"}};
const Names kLlamaModel = {{"embedding.w", "model.embed_tokens.weight"},
                           {"norm.w", "model.norm.weight"},
                           {"head.w", "lm_head.weight"}};
const Names kLlamaLayer = {{"attention_norm", "input_layernorm"},
                           {"mlp_norm", "post_attention_layernorm"},
                           {"attention.q", "self_attn.q_proj"},
                           {"attention.k", "self_attn.k_proj"},
                           {"attention.v", "self_attn.v_proj"},
                           {"attention.o", "self_attn.o_proj"},
                           {"attention.q_a", "self_attn.q_a_proj"},
                           {"attention.q_a_norm", "self_attn.q_a_layernorm"},
                           {"attention.q_b", "self_attn.q_b_proj"},
                           {"attention.kv_a", "self_attn.kv_a_proj_with_mqa"},
                           {"attention.k_rope", "self_attn.kv_a_proj_with_mqa"},
                           {"attention.kv_a_norm", "self_attn.kv_a_layernorm"},
                           {"attention.kv_b", "self_attn.kv_b_proj"},
                           {"mlp.down", "mlp.down_proj"},
                           {"moe.shared.down", "mlp.shared_experts.down_proj"}};

// Of multi-token prediction, behind the prefix of the layer that it counts as.
const Names kMtp = {{"embedding_norm", "enorm"},
                    {"stream_norm", "hnorm"},
                    {"from_embedding", "eh_proj"},
                    {"from_stream", "eh_proj"},
                    {"norm", "shared_head.norm"}};

int64_t rows_of(const Shape& shape) {
  return shape.rank() == 1 ? shape[0] : shape.numel() / shape[shape.rank() - 1];
}

HfPiece whole_piece(std::string tensor, const Shape& shape) {
  return {.tensor = std::move(tensor),
          .shape = {shape.extents().begin(), shape.extents().end()},
          .rows = rows_of(shape)};
}

// A piece for each matrix [F, D] of a stack.
std::vector<HfPiece> stack(const std::vector<std::string>& tensors, const Shape& shape) {
  const auto count = static_cast<int64_t>(tensors.size());
  const int64_t rows = rows_of(shape) / count;
  std::vector<HfPiece> pieces;
  for (int64_t i = 0; i < count; ++i) {
    pieces.push_back({.tensor = tensors[static_cast<size_t>(i)],
                      .shape = {rows, shape[shape.rank() - 1]},
                      .begin = i * rows,
                      .rows = rows});
  }
  return pieces;
}

// "w" → "weight"
std::string with_kind(std::string_view module, std::string_view kind) {
  return format("{}.{}", module, kind == "w" ? "weight" : "bias");
}

// A linear there keeps its weight as [in, out]; one of them makes q, k and v.
std::vector<HfPiece> gpt2_pieces(const std::string& layer, std::string_view module, std::string_view kind,
                                 const Shape& shape) {
  HfPiece piece = whole_piece(layer + with_kind(kGpt2Layer.at(module), kind), shape);
  if (module == "attention.q" || module == "attention.k" || module == "attention.v") {
    piece.first = (module.back() == 'q' ? 0 : module.back() == 'k' ? 1 : 2) * piece.rows;
    piece.shape[0] *= 3;
  }
  piece.transposed = shape.rank() == 2;
  if (piece.transposed) std::swap(piece.shape[0], piece.shape[1]);
  return {piece};
}

std::vector<HfPiece> expert_pieces(const ModelConfig& c, HfFamily family, const std::string& layer,
                                   std::string_view name, const Shape& shape) {
  const bool mixtral = family == HfFamily::mixtral;
  const std::string experts = layer + (mixtral ? "block_sparse_moe.experts." : "mlp.experts.");
  std::vector<std::string> tensors;
  for (int e = 0; e < c.moe.experts; ++e) {
    const auto add = [&](const char* theirs) {
      tensors.push_back(format("{}{}.{}.weight", experts, e, theirs));
    };
    if (name == "moe.experts.down") {
      add(mixtral ? "w2" : "down_proj");
    } else {
      add(mixtral ? "w1" : "gate_proj");
      add(mixtral ? "w3" : "up_proj");
    }
  }
  return stack(tensors, shape);
}

std::vector<HfPiece> latent_pieces(const ModelConfig& c, std::string_view module, HfPiece piece) {
  const MlaConfig& m = c.mla;
  if (module == "attention.q" || module == "attention.q_b") {
    piece.head = c.head_dim;
    piece.still = m.qk_nope_head_dim;
  } else if (module == "attention.kv_a") {
    piece.shape[0] += m.qk_rope_head_dim;
  } else if (module == "attention.k_rope") {
    piece.shape[0] += m.kv_lora_rank;
    piece.first = m.kv_lora_rank;
    piece.head = m.qk_rope_head_dim;
  }
  return {piece};
}

// [D, 2D] there: the columns of the embedding, then those of the stream.
HfPiece mtp_piece(const std::string& layer, std::string_view module, std::string_view kind,
                  const Shape& shape) {
  HfPiece piece = whole_piece(layer + with_kind(kMtp.at(module), kind), shape);
  if (shape.rank() == 2) piece.shape[1] *= 2;
  if (module == "from_stream") piece.first_column = shape[1];
  return piece;
}

// "model.layers.3." of "layers.3.", and of "mtp.0." behind three layers; and the rest of the name.
std::pair<std::string, std::string_view> split_layer(const ModelConfig& c, const std::string& name,
                                                     const char* layers) {
  const bool ahead = name.starts_with("mtp.");
  const size_t number = ahead ? 4 : 7;
  const size_t dot = name.find('.', number);
  const int layer = std::stoi(name.substr(number, dot - number)) + (ahead ? c.layers : 0);
  return {format("{}.{}.", layers, layer), std::string_view(name).substr(dot + 1)};
}

}  // namespace

std::vector<std::pair<std::string, std::string>> hf_copies(const ModelConfig& c) {
  const std::string embedding(kLlamaModel.at("embedding.w"));
  const std::string head = c.tied ? embedding : std::string(kLlamaModel.at("head.w"));
  std::vector<std::pair<std::string, std::string>> copies;
  for (int layer = c.layers; layer < c.blocks(); ++layer) {
    copies.emplace_back(format("model.layers.{}.embed_tokens.weight", layer), embedding);
    copies.emplace_back(format("model.layers.{}.shared_head.head.weight", layer), head);
  }
  return copies;
}

int64_t HfPiece::their_row(int64_t i) const {
  if (head == 0 || i % head < still) return first + i;
  const int64_t turning = i % head - still;
  const int64_t half = (head - still) / 2;
  return first + i / head * head + still + 2 * (turning % half) + turning / half;
}

std::vector<HfPiece> hf_pieces(const ModelConfig& c, HfFamily family, const std::string& name,
                               const Shape& shape) {
  const bool gpt2 = family == HfFamily::gpt2;
  if (!name.starts_with("layers.") && !name.starts_with("mtp.")) {
    return {whole_piece(std::string((gpt2 ? kGpt2Model : kLlamaModel).at(name)), shape)};
  }
  const auto [layer, rest] = split_layer(c, name, gpt2 ? "transformer.h" : "model.layers");
  if (rest.starts_with("moe.experts.")) return expert_pieces(c, family, layer, rest, shape);
  const std::string_view module = rest.substr(0, rest.rfind('.'));
  const std::string_view kind = rest.substr(module.size() + 1);
  if (gpt2) return gpt2_pieces(layer, module, kind, shape);
  if (module == "moe.router") {
    const char* theirs = kind == "bias"                ? "mlp.gate.e_score_correction_bias"
                         : family == HfFamily::mixtral ? "block_sparse_moe.gate.weight"
                                                       : "mlp.gate.weight";
    return {whole_piece(layer + theirs, shape)};
  }
  if (module == "mlp.gate_up" || module == "moe.shared.gate_up") {
    const std::string mlp = layer + (module == "mlp.gate_up" ? "mlp" : "mlp.shared_experts");
    return stack({mlp + ".gate_proj.weight", mlp + ".up_proj.weight"}, shape);
  }
  if (kMtp.contains(module)) return {mtp_piece(layer, module, kind, shape)};
  HfPiece piece = whole_piece(layer + with_kind(kLlamaLayer.at(module), kind), shape);
  if (c.attention == AttentionKind::mla) return latent_pieces(c, module, std::move(piece));
  return {piece};
}

}  // namespace phalanx
