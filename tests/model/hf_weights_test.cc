// Hugging Face's directories: what was written reads back bit for bit in any layout, tensors stand under
// their names, and mistakes are told. (make_golden.py and golden_test.cc compare the models themselves.)
#include "phalanx/model/hf_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "phalanx/base/error.h"
#include "phalanx/base/file.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/model/hf_config.h"
#include "phalanx/model/safetensors_model.h"
#include "tests/model/tiny_model.h"
#include "tests/temporary_directory.h"

namespace phalanx {
namespace {

using ::testing::HasSubstr;
using testing::TemporaryDirectory;
using ::testing::ThrowsMessage;
using testing::TinyModel;

ModelConfig base() {
  ModelConfig c = {.vocabulary = 13, .layers = 2, .width = 8, .heads = 4, .context = 6, .mlp_width = 12};
  c.tied = false;
  return c;
}

ModelConfig gpt2() {
  ModelConfig c = base();
  c.norm = NormKind::layernorm;
  c.positions = Positions::learned;
  c.mlp = MlpKind::gelu_tanh;
  c.bias = true;
  c.tied = true;
  return c;
}

ModelConfig llama() {
  ModelConfig c = base();
  c.kv_heads = 2;
  c.head_dim = 6;
  c.rope_theta = 500;
  c.yarn = {.factor = 4, .original_context = 3, .mscale = 0.7};
  return c;
}

ModelConfig mixtral() {
  ModelConfig c = base();
  c.mlp = MlpKind::moe;
  c.moe = {.experts = 4, .top_k = 2, .expert_width = 8};
  return c;
}

ModelConfig deepseek() {
  ModelConfig c = base();
  c.attention = AttentionKind::mla;
  c.mla = {
      .q_lora_rank = 5, .kv_lora_rank = 7, .qk_nope_head_dim = 3, .qk_rope_head_dim = 4, .v_head_dim = 2};
  c.mlp = MlpKind::moe;
  c.moe = {.experts = 4,
           .top_k = 2,
           .expert_width = 8,
           .shared_experts = 1,
           .dense_layers = 1,
           .scores = Scores::sigmoid,
           .scaling = 1.5,
           .groups = 2,
           .top_groups = 1};
  return c;
}

ModelConfig dense_deepseek() {
  ModelConfig c = deepseek();
  c.mla.q_lora_rank = 0;
  c.mlp = MlpKind::swiglu;
  c.moe = MoeConfig();
  return c;
}

ModelConfig deepseek_ahead() {
  ModelConfig c = deepseek();
  c.mtp = 2;
  return c;
}

ModelConfig tied_dense_ahead() {
  ModelConfig c = dense_deepseek();
  c.tied = true;
  c.mtp = 1;
  return c;
}

ModelConfig (*const kModels[])() = {gpt2,           llama,          mixtral,         deepseek,
                                    dense_deepseek, deepseek_ahead, tied_dense_ahead};

void set_biases(ParameterStore& store, double first) {
  for (const State& s : store.states()) {
    for (double& b : s.value.span<double>()) b = first++;
  }
}

// Saves the model of a seed, and biases where the family has some; gives its weights in full.
std::map<std::string, std::vector<double>> saved(const ModelConfig& c, const std::filesystem::path& path) {
  std::map<std::string, std::vector<double>> weights;
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    TinyModel model(world, {}, c, 7);
    if (c.attention == AttentionKind::mla) set_biases(model.store, 2.5);
    save_hf_model(model.store, model.transformer.config(), path);
    for (const Parameter& p : model.store.all()) {
      const auto values = p.value().span<double>();
      weights[p.name()] = {values.begin(), values.end()};
    }
    for (const State& s : model.store.states()) {
      const auto values = s.value.span<double>();
      weights[s.name] = {values.begin(), values.end()};
    }
  });
  return weights;
}

void load(const ModelConfig& c, const std::filesystem::path& path) {
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    TinyModel model(world, {}, c, 8);
    load_hf_weights(model.store, model.transformer.config(), path);
  });
}

// What a rank of a layout has of the saved model, read back.
void expect_read_back(Group& world, const Layout& layout, Zero zero, const ModelConfig& c,
                      const std::filesystem::path& path,
                      const std::map<std::string, std::vector<double>>& weights) {
  Mesh mesh(world, layout);
  ParameterStore store(mesh, DType::f64, {.stage = zero});
  const StagePart part = cut_into_stages(c.layers, layout.pp)[static_cast<size_t>(mesh.coordinate(Axis::pp))];
  const Transformer model(store, resolved(c), 8, {}, 0, {part});
  store.initialise(8);
  load_hf_weights(store, model.config(), path);
  for (const Parameter& p : store.all()) {
    const Tensor own = zero == Zero::weights ? store.own_value(p) : p.value();
    const int64_t first = zero == Zero::weights ? store.share_of(p).begin : 0;
    for (int64_t i = 0; i < own.numel(); ++i) {
      const int64_t at = p.slice().global_index(first + i);
      ASSERT_EQ(own.data<double>()[i], weights.at(p.name())[static_cast<size_t>(at)]) << p.name() << " " << i;
    }
  }
  for (const State& s : store.states()) {
    EXPECT_TRUE(std::ranges::equal(s.value.span<double>(), weights.at(s.name))) << s.name;
  }
}

TEST(HfWeights, ReadBackInEveryLayout) {
  const TemporaryDirectory dir;
  for (size_t m = 0; m < std::size(kModels); ++m) {
    const ModelConfig c = kModels[m]();
    const std::filesystem::path path = dir / std::to_string(m);
    const auto weights = saved(c, path);
    std::vector<Layout> layouts = {{}, {.tp = 2}, {.tp = 4}, {.pp = 2}, {.pp = 2, .dp = 3, .tp = 2}};
    if (c.mlp == MlpKind::moe) {
      layouts.push_back({.tp = 2, .ep = 2});
      layouts.push_back({.dp = 2, .tp = 2, .ep = 2, .etp = 2});
    }
    for (const Layout& layout : layouts) {
      for (const Zero zero : {Zero::none, Zero::gradients, Zero::weights}) {
        SCOPED_TRACE(format("model {}, {}, ZeRO {}", m, layout.text(), static_cast<int>(zero)));
        run_thread_ranks({.ranks = layout.ranks()},
                         [&](Group& world) { expect_read_back(world, layout, zero, c, path, weights); });
      }
    }
  }
}

TEST(HfWeights, ConfigsReadBack) {
  const TemporaryDirectory dir;
  for (const auto& model : kModels) {
    const std::string text = hf_config_text(resolved(model()), DType::f64);
    const std::filesystem::path path = dir / "config.json";
    std::filesystem::remove(path);
    write_new_file(path, text);
    EXPECT_EQ(hf_config_text(read_hf_config(path), DType::f64), text);
  }
}

// A stored tensor's element [row, column], or [row] of a vector.
double stored(const std::filesystem::path& path, const std::string& name, int64_t row, int64_t column = 0) {
  const SafetensorsModel model = SafetensorsModel::open(path);
  const auto& [file, tensor] = model.at(name);
  const Shape shape(std::span<const int64_t>(tensor->shape));
  const Tensor all = Tensor::empty(shape, DType::f64);
  file->load(*tensor, whole(shape), all);
  return all.span<double>()[static_cast<size_t>(shape.rank() == 1 ? row : row * shape[1] + column)];
}

TEST(HfWeights, TensorsStandWhereTheirsDo) {
  const TemporaryDirectory dir;
  const auto g = saved(gpt2(), dir / "gpt2");  // [in, out], and q, k, v beside each other
  EXPECT_EQ(stored(dir / "gpt2", "transformer.h.1.attn.c_attn.weight", 3, 2 * 8 + 5),
            g.at("layers.1.attention.v.w")[5 * 8 + 3]);
  EXPECT_EQ(stored(dir / "gpt2", "transformer.h.0.attn.c_attn.bias", 8 + 2),
            g.at("layers.0.attention.k.b")[2]);
  EXPECT_EQ(stored(dir / "gpt2", "transformer.h.0.mlp.c_fc.weight", 7, 9),
            g.at("layers.0.mlp.up.w")[9 * 8 + 7]);
  const auto m = saved(mixtral(), dir / "mixtral");  // w3 is up, the second of two
  EXPECT_EQ(stored(dir / "mixtral", "model.layers.1.block_sparse_moe.experts.2.w3.weight", 4, 1),
            m.at("layers.1.moe.experts.gate_up")[((2 * 2 + 1) * 8 + 4) * 8 + 1]);
  const auto d = saved(deepseek(), dir / "deepseek");
  // Head 2 of 3 + 4 rows: the first ones of two pairs, then the second ones; theirs pair by pair.
  for (const auto& [ours, theirs] : {std::pair{0, 0}, {2, 2}, {3, 3}, {4, 5}, {5, 4}, {6, 6}}) {
    EXPECT_EQ(stored(dir / "deepseek", "model.layers.0.self_attn.q_b_proj.weight", 2 * 7 + theirs, 1),
              d.at("layers.0.attention.q_b.w")[static_cast<size_t>((2 * 7 + ours) * 5 + 1)]);
  }
  EXPECT_EQ(stored(dir / "deepseek", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight", 7 + 1, 3),
            d.at("layers.0.attention.k_rope.w")[2 * 8 + 3]);
  EXPECT_EQ(stored(dir / "deepseek", "model.layers.1.mlp.shared_experts.up_proj.weight", 2, 3),
            d.at("layers.1.moe.shared.gate_up.w")[(8 + 2) * 8 + 3]);
  EXPECT_EQ(stored(dir / "deepseek", "model.layers.1.mlp.gate.e_score_correction_bias", 3), 5.5);
}

// Depths count as the layers behind the last one; first the columns of the embedding, then the stream's.
TEST(HfWeights, DepthsOfMultiTokenPredictionStandWhereTheirsDo) {
  const TemporaryDirectory dir;
  const auto d = saved(deepseek_ahead(), dir / "a");
  for (const auto& [theirs, ours] : {std::pair{"model.layers.2.", "mtp.0."}, {"model.layers.3.", "mtp.1."}}) {
    const auto there = [&](const char* name, int64_t row, int64_t column = 0) {
      return stored(dir / "a", std::string(theirs) + name, row, column);
    };
    const auto here = [&](const char* name, size_t at) { return d.at(std::string(ours) + name)[at]; };
    EXPECT_EQ(there("eh_proj.weight", 3, 2), here("from_embedding.w", 3 * 8 + 2));
    EXPECT_EQ(there("eh_proj.weight", 3, 8 + 2), here("from_stream.w", 3 * 8 + 2));
    EXPECT_EQ(there("enorm.weight", 4), here("embedding_norm.w", 4));
    EXPECT_EQ(there("hnorm.weight", 4), here("stream_norm.w", 4));
    EXPECT_EQ(there("shared_head.norm.weight", 4), here("norm.w", 4));
    EXPECT_EQ(there("mlp.experts.1.down_proj.weight", 5, 6), here("moe.experts.down", (8 + 5) * 8 + 6));
    EXPECT_EQ(there("mlp.gate.e_score_correction_bias", 1), here("moe.router.bias", 1));
    EXPECT_EQ(there("embed_tokens.weight", 5, 6), d.at("embedding.w")[5 * 8 + 6]);
    EXPECT_EQ(there("shared_head.head.weight", 5, 6), d.at("head.w")[5 * 8 + 6]);
  }
  saved(tied_dense_ahead(), dir / "tied");
  EXPECT_EQ(stored(dir / "tied", "model.layers.2.shared_head.head.weight", 5, 6),
            stored(dir / "tied", "model.embed_tokens.weight", 5, 6));
  load(deepseek(), dir / "a");  // without: they are left alone
  EXPECT_THAT([&] { load(deepseek_ahead(), (saved(deepseek(), dir / "b"), dir / "b")); },
              ThrowsMessage<Error>(HasSubstr("\"model.layers.2.enorm.weight\" is missing")));
}

// Copies a model's tensors into a file, as `change` leaves them.
void copy_tensors(const SafetensorsModel& model, const std::filesystem::path& file, DType dtype,
                  const std::function<bool(const std::string&)>& wanted,
                  const std::function<double(const std::string&, double)>& change) {
  std::vector<TensorToStore> headers;
  for (const auto& [name, entry] : model.tensors()) {
    if (wanted(name)) headers.push_back({name, dtype, Shape(std::span<const int64_t>(entry.tensor->shape))});
  }
  SafetensorsWriter writer(file, headers);
  for (const TensorToStore& t : headers) {
    const Tensor all = Tensor::empty(t.shape, DType::f64);
    model.at(t.name).file->load(*model.at(t.name).tensor, whole(t.shape), all);
    for (const double v : all.span<double>()) {
      const double changed = change(t.name, v);
      const bf16 half = bf16::from(static_cast<float>(changed));
      writer.append(dtype == DType::bf16 ? std::as_bytes(std::span(&half, 1))
                                         : std::as_bytes(std::span(&changed, 1)));
    }
  }
  writer.finish();
}

double as_it_is(const std::string&, double v) { return v; }

TEST(HfWeights, ConvertsFromBf16) {
  const TemporaryDirectory dir;
  const auto weights = saved(llama(), dir / "a");
  make_directory(dir / "b");
  copy_tensors(
      SafetensorsModel::open(dir / "a"), dir / "b/model.safetensors", DType::bf16,
      [](const std::string&) { return true; }, as_it_is);
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    TinyModel read(world, {}, llama(), 8);
    load_hf_weights(read.store, read.transformer.config(), dir / "b");
    const auto got = read.parameter("layers.1.mlp.down.w").value().span<double>();
    for (size_t i = 0; i < got.size(); ++i) {
      const double want = weights.at("layers.1.mlp.down.w")[i];
      EXPECT_EQ(got[i], bf16::from(static_cast<float>(want)).to_float());
    }
  });
}

TEST(HfWeights, ReadsSeveralFilesByTheirIndex) {
  const TemporaryDirectory dir;
  const auto weights = saved(deepseek(), dir / "a");
  const SafetensorsModel model = SafetensorsModel::open(dir / "a");
  make_directory(dir / "b");
  std::string map;
  for (const bool first : {true, false}) {
    const auto wanted = [&](const std::string& name) { return name.starts_with("model.layers.0.") == first; };
    const std::string file = first ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors";
    copy_tensors(model, dir / "b" / file, DType::f64, wanted, as_it_is);
    for (const auto& [name, entry] : model.tensors()) {
      if (wanted(name)) map += format("{}\"{}\": \"{}\"", map.empty() ? "" : ", ", name, file);
    }
  }
  write_new_file(dir / "b/model.safetensors.index.json", "{\"weight_map\": {" + map + "}}");
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    TinyModel read(world, {}, deepseek(), 8);
    load_hf_weights(read.store, read.transformer.config(), dir / "b");
    for (const Parameter& p : read.store.all()) {
      EXPECT_TRUE(std::ranges::equal(p.value().span<double>(), weights.at(p.name()))) << p.name();
    }
  });
}

TEST(HfWeights, ABiasThatAFamilyDoesNotHaveIsRefused) {
  const TemporaryDirectory dir;
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    TinyModel model(world, {}, mixtral(), 7);
    set_biases(model.store, 0);
    EXPECT_THAT([&] { save_hf_model(model.store, model.transformer.config(), dir / "a"); },
                ThrowsMessage<Error>(HasSubstr("layers.0.moe.router.bias is not zero")));
  });
}

TEST(HfWeights, MistakesNameTheTensor) {
  const TemporaryDirectory dir;
  saved(llama(), dir / "llama");
  ModelConfig wide = llama();
  wide.mlp_width = 16;
  EXPECT_THAT([&] { load(wide, dir / "llama"); },
              ThrowsMessage<Error>(HasSubstr(
                  "tensor \"model.layers.0.mlp.gate_proj.weight\" has shape [12, 8], [16, 8] is expected")));
  ModelConfig tied = llama();
  tied.tied = true;
  saved(tied, dir / "tied");
  EXPECT_THAT(
      [&] { load(llama(), dir / "tied"); },
      ThrowsMessage<Error>(HasSubstr("tensor \"lm_head.weight\" is missing, which head.w comes from")));
  EXPECT_THAT([&] { saved(llama(), dir / "llama"); }, ThrowsMessage<Error>(HasSubstr("llama")));
}

TEST(HfWeights, ModelsOfNoFamilyAreRefused) {
  const auto refusal = [](ModelConfig c) {
    try {
      hf_family(resolved(c));
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  for (const auto& model : kModels) EXPECT_EQ(refusal(model()), "");
  ModelConfig c = llama();
  c.mlp = MlpKind::gelu;
  EXPECT_THAT(refusal(c), HasSubstr("LlamaForCausalLM would have to have model.mlp = \"swiglu\""));
  c = mixtral();
  c.moe.shared_experts = 1;
  EXPECT_THAT(refusal(c), HasSubstr("MixtralForCausalLM would have to have normalised softmax scores"));
  c = deepseek();
  c.layers = 3;
  c.moe.share_layers = 2;
  EXPECT_THAT(refusal(c), HasSubstr("moe.share_layers = 1"));
  c = llama();
  c.mtp = 1;
  EXPECT_THAT(refusal(c), HasSubstr("LlamaForCausalLM would have to have model.mtp = 0"));
  c = gpt2();
  c.bias = false;
  EXPECT_THAT(refusal(c), HasSubstr("GPT2LMHeadModel would have to have model.bias = true"));
}

TEST(HfWeights, ConfigsThatMeanSomethingElseAreRefused) {
  const TemporaryDirectory dir;
  const auto refusal = [&](const char* json) {
    std::filesystem::remove(dir / "config.json");
    write_new_file(dir / "config.json", json);
    try {
      read_hf_config(dir / "config.json");
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(refusal(R"({"model_type": "llama"})"), "no error");
  EXPECT_THAT(refusal(R"({"model_type": "bert"})"), HasSubstr("config.json: \"model_type\" is \"bert\""));
  EXPECT_THAT(refusal(R"({"model_type": "llama", "attention_bias": true})"),
              HasSubstr("\"attention_bias\" is true"));
  EXPECT_THAT(refusal(R"({"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}})"),
              HasSubstr("\"rope_type\" is \"llama3\""));
  EXPECT_EQ(refusal(R"({"model_type": "deepseek_v3"})"), "no error");
  EXPECT_THAT(refusal(R"({"model_type": "deepseek_v3", "topk_group": 9})"), HasSubstr("moe.top_groups 9"));
  EXPECT_THAT(refusal(R"({"model_type": "llama", "hidden_size": "8"})"), HasSubstr("\"hidden_size\""));
  EXPECT_THAT(refusal(R"({"model_type": "llama", "num_attention_heads": 5})"),
              HasSubstr("config.json: model.width"));
}

}  // namespace
}  // namespace phalanx
