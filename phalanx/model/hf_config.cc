#include "phalanx/model/hf_config.h"

#include <map>

#include "phalanx/base/file.h"
#include "phalanx/model/strict_json-inl.h"

namespace phalanx {
namespace {

using strict_json::Json;

constexpr uint64_t kLongest = 1 << 20;
constexpr uint64_t kLargest = uint64_t{1} << 40;

struct Family {
  HfFamily family;
  const char* type;
  const char* architecture;
};
constexpr Family kFamilies[] = {{HfFamily::gpt2, "gpt2", "GPT2LMHeadModel"},
                                {HfFamily::llama, "llama", "LlamaForCausalLM"},
                                {HfFamily::mixtral, "mixtral", "MixtralForCausalLM"},
                                {HfFamily::deepseek_v3, "deepseek_v3", "DeepseekV3ForCausalLM"}};

// What of a model its family does not have: "" if nothing.
std::string unfit(const ModelConfig& c, HfFamily family) {
  const bool gpt2 = family == HfFamily::gpt2;
  const auto needs = [](bool holds, const char* what) { return holds ? "" : what; };
  const std::string all[] = {
      needs(gpt2 || c.norm == NormKind::rmsnorm, "model.norm = \"rmsnorm\""),
      needs(gpt2 || c.positions == Positions::rope, "model.positions = \"rope\""),
      needs(c.bias == gpt2, gpt2 ? "model.bias = true" : "model.bias = false"),
      needs(!gpt2 || c.positions == Positions::learned, "model.positions = \"learned\""),
      needs(!gpt2 || (c.kv_heads == c.heads && c.heads * c.head_dim == c.width), "as many KV heads as heads"),
      needs(!gpt2 || c.mlp == MlpKind::gelu || c.mlp == MlpKind::gelu_tanh, "model.mlp = \"gelu\""),
      needs(gpt2 || c.mlp == MlpKind::swiglu || c.mlp == MlpKind::moe, "model.mlp = \"swiglu\""),
      needs(family != HfFamily::mixtral ||
                (c.moe.scores == Scores::softmax && c.moe.normalise && c.moe.scaling == 1 &&
                 c.moe.shared_experts == 0 && c.moe.dense_layers == 0 && c.moe.top_groups == c.moe.groups),
            "normalised softmax scores, one group, no shared experts and no dense layers"),
      needs(family != HfFamily::deepseek_v3 || c.mlp != MlpKind::moe ||
                (c.moe.scores == Scores::sigmoid && c.moe.shared_experts > 0),
            "moe.scores = \"sigmoid\" and shared experts"),
      needs(c.mlp != MlpKind::moe || c.moe.share_layers == 1, "moe.share_layers = 1"),
      needs(family == HfFamily::deepseek_v3 || c.mtp == 0, "model.mtp = 0")};
  for (const std::string& what : all) {
    if (!what.empty()) return what;
  }
  return {};
}

// config.json, by key.
class Reader {
 public:
  Reader(const Json& json, std::string where) : json_(json), where_(std::move(where)) {}

  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }
  int64_t count(const char* key, int64_t otherwise) const {
    return has(key) ? static_cast<int64_t>(strict_json::as_count(json_[key], kLargest, place(key)))
                    : otherwise;
  }
  int integer(const char* key, int otherwise) const {
    const int64_t n = count(key, otherwise);
    if (n > (1 << 20)) throw Error("{}: {} is too large", place(key), n);
    return static_cast<int>(n);
  }
  double number(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    if (!json_[key].is_number()) throw Error("{}: a number is expected", place(key));
    return json_[key].get<double>();
  }
  bool flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!json_[key].is_boolean()) throw Error("{}: true or false is expected", place(key));
    return json_[key].get<bool>();
  }
  std::string text(const char* key, const char* otherwise) const {
    return has(key) ? strict_json::as_text(json_[key], place(key)) : otherwise;
  }
  Reader object(const char* key) const {
    return {has(key) ? strict_json::as_object(json_[key], place(key)) : kEmpty, place(key)};
  }
  // Error unless the key is absent or has that value, the only one that this engine computes.
  void only(const char* key, const Json& value) const {
    if (!has(key) || json_[key] == value) return;
    throw Error("{} is {}; this engine computes {} alone", place(key), json_[key].dump(), value.dump());
  }
  std::string place(const char* key) const { return format("{}: \"{}\"", where_, key); }

 private:
  inline static const Json kEmpty = Json::object();
  const Json& json_;
  std::string where_;
};

// Of transformers 5 ("rope_parameters"), or of those before ("rope_theta" and "rope_scaling").
void read_rope(const Reader& r, ModelConfig& c) {
  const bool joined = r.has("rope_parameters");
  const Reader rope = r.object(joined ? "rope_parameters" : "rope_scaling");
  c.rope_theta = (joined ? rope : r).number("rope_theta", 10000);
  const std::string type = rope.text("rope_type", rope.text("type", "default").c_str());
  if (type == "default") return;
  if (type != "yarn") throw Error("{} is \"{}\": default or yarn is expected", rope.place("rope_type"), type);
  rope.only("partial_rotary_factor", 1.0);
  if (rope.has("attention_factor")) throw Error("{} is not supported", rope.place("attention_factor"));
  rope.only("truncate", true);
  c.yarn = {.factor = rope.number("factor", 1),
            .original_context = rope.number("original_max_position_embeddings", 0),
            .beta_fast = rope.number("beta_fast", 32),
            .beta_slow = rope.number("beta_slow", 1),
            .mscale = rope.number("mscale", 0),
            .mscale_all_dim = rope.number("mscale_all_dim", 0)};
}

ModelConfig read_gpt2(const Reader& r) {
  ModelConfig c;
  c.norm = NormKind::layernorm;
  c.positions = Positions::learned;
  c.bias = true;
  c.vocabulary = r.count("vocab_size", 50257);
  c.layers = r.integer("n_layer", 12);
  c.width = r.count("n_embd", 768);
  c.heads = r.integer("n_head", 12);
  c.context = r.count("n_positions", 1024);
  c.mlp_width = r.count("n_inner", 4 * c.width);
  c.norm_eps = r.number("layer_norm_epsilon", 1e-5);
  c.tied = r.flag("tie_word_embeddings", true);
  const std::string activation = r.text("activation_function", "gelu_new");
  if (activation != "gelu" && activation != "gelu_new") {
    throw Error("{} is \"{}\": gelu or gelu_new is expected", r.place("activation_function"), activation);
  }
  c.mlp = activation == "gelu" ? MlpKind::gelu : MlpKind::gelu_tanh;
  r.only("scale_attn_weights", true);
  r.only("scale_attn_by_inverse_layer_idx", false);
  r.only("add_cross_attention", false);
  return c;
}

void read_experts(const Reader& r, HfFamily family, ModelConfig& c) {
  if (family == HfFamily::llama) return;
  c.mlp = MlpKind::moe;
  if (family == HfFamily::mixtral) {
    c.moe.experts = r.integer("num_local_experts", 8);
    c.moe.top_k = r.integer("num_experts_per_tok", 2);
    c.moe.expert_width = c.mlp_width;
    r.only("sliding_window", nullptr);
    return;
  }
  c.moe = {.experts = r.integer("n_routed_experts", 256),
           .top_k = r.integer("num_experts_per_tok", 8),
           .expert_width = r.count("moe_intermediate_size", 2048),
           .shared_experts = r.integer("n_shared_experts", 1),
           .dense_layers = r.integer("first_k_dense_replace", 3),
           .scores = Scores::sigmoid,
           .normalise = r.flag("norm_topk_prob", true),
           .scaling = r.number("routed_scaling_factor", 2.5),
           .groups = r.integer("n_group", 8),
           .top_groups = r.integer("topk_group", 4)};
  if (c.moe.dense_layers < c.layers) return;
  c.mlp = MlpKind::swiglu;
  c.moe = MoeConfig();
}

void read_deepseek(const Reader& r, ModelConfig& c) {
  c.mtp = r.integer("num_nextn_predict_layers", 0);
  c.attention = AttentionKind::mla;
  c.mla = {.q_lora_rank = r.count("q_lora_rank", 0),
           .kv_lora_rank = r.count("kv_lora_rank", 512),
           .qk_nope_head_dim = r.count("qk_nope_head_dim", 128),
           .qk_rope_head_dim = r.count("qk_rope_head_dim", 64),
           .v_head_dim = r.count("v_head_dim", 128)};
  r.only("rope_interleave", true);
}

ModelConfig read_llama(const Reader& r, HfFamily family) {
  ModelConfig c;
  c.vocabulary = r.count("vocab_size", 32000);
  c.layers = r.integer("num_hidden_layers", 32);
  c.width = r.count("hidden_size", 4096);
  c.heads = r.integer("num_attention_heads", 32);
  c.kv_heads = r.integer("num_key_value_heads", c.heads);
  c.context = r.count("max_position_embeddings", 2048);
  c.norm_eps = r.number("rms_norm_eps", 1e-6);
  c.mlp_width = r.count("intermediate_size", 11008);
  c.tied = r.flag("tie_word_embeddings", false);
  r.only("hidden_act", "silu");
  r.only("attention_bias", false);
  r.only("mlp_bias", false);
  read_rope(r, c);
  read_experts(r, family, c);
  if (family == HfFamily::deepseek_v3) {
    read_deepseek(r, c);
  } else {
    c.head_dim = r.count("head_dim", 0);
  }
  return c;
}

Json gpt2_json(const ModelConfig& c) {
  return {{"vocab_size", c.vocabulary},
          {"n_layer", c.layers},
          {"n_embd", c.width},
          {"n_head", c.heads},
          {"n_positions", c.context},
          {"n_inner", c.mlp_width},
          {"layer_norm_epsilon", c.norm_eps},
          {"activation_function", c.mlp == MlpKind::gelu ? "gelu" : "gelu_new"}};
}

void add_rope(const ModelConfig& c, Json& json) {
  json["rope_theta"] = c.rope_theta;
  const Yarn& y = c.yarn;
  if (y.factor == 1) return;
  Json rope = {{"rope_type", "yarn"},
               {"factor", y.factor},
               {"original_max_position_embeddings", y.original_context},
               {"beta_fast", y.beta_fast},
               {"beta_slow", y.beta_slow}};
  const bool whole = y.original_context == static_cast<double>(static_cast<int64_t>(y.original_context));
  if (whole) rope["original_max_position_embeddings"] = static_cast<int64_t>(y.original_context);
  if (y.mscale > 0) rope["mscale"] = y.mscale;
  if (y.mscale_all_dim > 0) rope["mscale_all_dim"] = y.mscale_all_dim;
  json["rope_scaling"] = rope;
}

void add_deepseek(const ModelConfig& c, Json& json) {
  const bool moe = c.mlp == MlpKind::moe;
  const int64_t q_rank = c.mla.q_lora_rank;
  json["q_lora_rank"] = q_rank > 0 ? Json(q_rank) : Json(nullptr);
  json["kv_lora_rank"] = c.mla.kv_lora_rank;
  json["qk_nope_head_dim"] = c.mla.qk_nope_head_dim;
  json["qk_rope_head_dim"] = c.mla.qk_rope_head_dim;
  json["v_head_dim"] = c.mla.v_head_dim;
  json["rope_interleave"] = true;
  json["first_k_dense_replace"] = c.has_experts(c.layers) ? c.moe.dense_layers : c.blocks();
  json["num_nextn_predict_layers"] = c.mtp;
  json["n_group"] = c.moe.groups;
  json["topk_group"] = c.moe.top_groups;
  if (!moe) return;
  json["n_routed_experts"] = c.moe.experts;
  json["num_experts_per_tok"] = c.moe.top_k;
  json["moe_intermediate_size"] = c.moe.expert_width;
  json["n_shared_experts"] = c.moe.shared_experts;
  json["norm_topk_prob"] = c.moe.normalise;
  json["routed_scaling_factor"] = c.moe.scaling;
}

Json llama_json(const ModelConfig& c, HfFamily family) {
  Json json = {{"vocab_size", c.vocabulary},
               {"num_hidden_layers", c.layers},
               {"hidden_size", c.width},
               {"num_attention_heads", c.heads},
               {"num_key_value_heads", c.kv_heads},
               {"max_position_embeddings", c.context},
               {"rms_norm_eps", c.norm_eps},
               {"intermediate_size", family == HfFamily::mixtral ? c.moe.expert_width : c.mlp_width},
               {"hidden_act", "silu"}};
  if (family != HfFamily::deepseek_v3) json["head_dim"] = c.head_dim;
  add_rope(c, json);
  if (family == HfFamily::deepseek_v3) add_deepseek(c, json);
  if (family == HfFamily::mixtral) {
    json["num_local_experts"] = c.moe.experts;
    json["num_experts_per_tok"] = c.moe.top_k;
    json["sliding_window"] = nullptr;
  }
  return json;
}

}  // namespace

HfFamily hf_family(const ModelConfig& c) {
  const HfFamily family = c.norm == NormKind::layernorm       ? HfFamily::gpt2
                          : c.attention == AttentionKind::mla ? HfFamily::deepseek_v3
                          : c.mlp == MlpKind::moe             ? HfFamily::mixtral
                                                              : HfFamily::llama;
  const std::string what = unfit(c, family);
  if (what.empty()) return family;
  throw Error("Hugging Face has no such model: {} would have to have {}",
              kFamilies[static_cast<size_t>(family)].architecture, what);
}

std::string hf_config_text(const ModelConfig& c, DType dtype) {
  const HfFamily family = hf_family(c);
  const Family& names = kFamilies[static_cast<size_t>(family)];
  Json json = family == HfFamily::gpt2 ? gpt2_json(c) : llama_json(c, family);
  json["model_type"] = names.type;
  json["architectures"] = {names.architecture};
  json["tie_word_embeddings"] = c.tied;
  json["torch_dtype"] = dtype == DType::f64 ? "float64" : "float32";
  json["bos_token_id"] = nullptr;
  json["eos_token_id"] = nullptr;
  return json.dump(2) + "\n";
}

ModelConfig read_hf_config(const std::filesystem::path& path) {
  const std::string where = path.string();
  const Json json = strict_json::parse(read_text(path, kLongest), where);
  const Reader r(strict_json::as_object(json, where), where);
  const std::string type = r.text("model_type", "");
  for (const Family& f : kFamilies) {
    if (f.type != type) continue;
    try {
      return resolved(f.family == HfFamily::gpt2 ? read_gpt2(r) : read_llama(r, f.family));
    } catch (const Error& e) {
      if (std::string_view(e.what()).starts_with(where)) throw;
      throw Error("{}: {}", where, e.what());
    }
  }
  throw Error("{} is \"{}\": gpt2, llama, mixtral or deepseek_v3 is expected", r.place("model_type"), type);
}

}  // namespace phalanx
