#include "phalanx/train/train_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>

#include "phalanx/base/error.h"
#include "tests/paths.h"

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Overrides = std::vector<std::string>;

TrainConfig parse(std::string_view toml, const Overrides& overrides = {}) {
  return parse_train_config(toml, "a.toml", overrides);
}

std::string refusal(std::string_view toml, const Overrides& overrides = {}) {
  try {
    parse(toml, overrides);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

std::string shipped(const std::string& name) {
  return (std::filesystem::path(testing::kSourceDir) / "configs" / name).string();
}

TEST(TrainConfig, DefaultsHold) {
  const TrainConfig c = parse("");
  EXPECT_EQ(c.train.microbatch, c.train.batch);
  EXPECT_EQ(c.parallel.ranks, 1);
  EXPECT_EQ(c.parallel.layout, "dp=1");
}

TEST(TrainConfig, NanoGptOnCpuIsNanoGpts) {
  const TrainConfig c = load_train_config(shipped("nanogpt_cpu.toml"), {});
  EXPECT_EQ(c.model.layers, 4);
  EXPECT_EQ(c.model.width, 128);
  EXPECT_EQ(c.model.heads, 4);
  EXPECT_EQ(c.model.kv_heads, 4);
  EXPECT_EQ(c.model.head_dim, 32);
  EXPECT_EQ(c.model.context, 64);
  EXPECT_EQ(c.model.mlp_width, 512);
  EXPECT_EQ(c.model.norm, NormKind::layernorm);
  EXPECT_EQ(c.model.norm_eps, 1e-5);
  EXPECT_EQ(c.model.positions, Positions::learned);
  EXPECT_EQ(c.model.mlp, MlpKind::gelu);
  EXPECT_FALSE(c.model.bias);
  EXPECT_TRUE(c.model.tied);
  EXPECT_EQ(c.model.dropout, 0);
  EXPECT_EQ(c.model.init_std, std::sqrt(2 / (5 * 128.0)));
  EXPECT_EQ(c.data.tokenizer, TokenizerKind::characters);
  EXPECT_EQ(c.train.steps, 2000);
  EXPECT_EQ(c.train.batch, 12);
  EXPECT_EQ(c.optimizer.kind, OptimizerConfig::Kind::adamw);
  EXPECT_EQ(c.optimizer.beta1, 0.9);
  EXPECT_EQ(c.optimizer.beta2, 0.99);
  EXPECT_EQ(c.optimizer.eps, 1e-8);
  EXPECT_EQ(c.optimizer.weight_decay, 0.1);
  EXPECT_EQ(c.lr.lr, 1e-3);
  EXPECT_EQ(c.lr.min_lr, 1e-4);
  EXPECT_EQ(c.lr.warmup, 100);
  EXPECT_EQ(c.lr.decay, Decay::cosine);
  EXPECT_EQ(c.clip, 1);
}

TEST(TrainConfig, EveryShippedConfigLoadsAndPrintsWhatItMeans) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(shipped(""))) {
    SCOPED_TRACE(entry.path().string());
    const TrainConfig c = load_train_config(entry.path().string(), {});
    const std::string printed = to_toml(c);
    EXPECT_EQ(to_toml(parse(printed)), printed);
    ++files;
  }
  EXPECT_GE(files, 3);
}

TEST(TrainConfig, DemoSharesItsExpertsOverFourRanks) {
  const TrainConfig c = load_train_config(shipped("demo_moe.toml"), {});
  EXPECT_EQ(c.model.mlp, MlpKind::moe);
  EXPECT_EQ(c.model.moe.experts, 8);
  EXPECT_EQ(c.model.moe.shared_experts, 1);
  EXPECT_EQ(layout_of(c.parallel).dp, 4);
  EXPECT_EQ(layout_of(c.parallel).ep, 4);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < text.size(); at = text.find('\n', at) + 1) {
    lines.push_back(text.substr(at, text.find('\n', at) - at));
  }
  return lines;
}

// A build without CUDA, too, says what GPUs do not compute yet.
TEST(TrainConfig, WhatGpusDoNotComputeIsRefused) {
  const auto told = [](std::vector<std::string> set) {
    set.insert(set.begin(), "train.device=cuda");
    return refusal("", set);
  };
  EXPECT_EQ(told({}), "no error");
  EXPECT_EQ(told({"train.weights=bf16", "train.gradients=bf16"}), "no error");
  EXPECT_EQ(told({"parallel.layout=pp=2,dp=2,tp=2"}), "no error");
  EXPECT_EQ(told({"model.mlp=moe", "parallel.layout=pp=2,dp=2"}), "no error");
  EXPECT_EQ(told({"model.mlp=moe", "parallel.layout=dp=2,ep=2"}), "no error");
  EXPECT_EQ(told({"model.mlp=moe", "parallel.layout=tp=2,etp=2"}), "no error");
  EXPECT_THAT(told({"model.mlp=moe", "parallel.layout=dp=2,ep=2", "moe.exact_sums=true"}),
              HasSubstr("moe.exact_sums with ep or etp"));
  EXPECT_THAT(refusal("", {"parallel.transport=nccl"}), HasSubstr("train.device cuda"));
  EXPECT_EQ(told({"model.attention=mla"}), "no error");
  EXPECT_EQ(told({"optimizer.offload=/tmp"}), "no error");
  EXPECT_THAT(told({"train.gradients=bf16"}), HasSubstr("train.weights bf16"));
  EXPECT_THAT(told({"train.weights=bf16", "train.gradients=bf16", "optimizer.kind=sgd"}), HasSubstr("adamw"));
  EXPECT_THAT(refusal("", {"train.gradients=bf16"}), HasSubstr("train.device cuda"));
}

TEST(TrainConfig, NarrowMomentsAreAdamWsInF32) {
  EXPECT_EQ(refusal("", {"optimizer.moments=bf16"}), "no error");
  EXPECT_EQ(refusal("", {"optimizer.moments=bf16", "train.device=cuda", "train.weights=bf16"}), "no error");
  EXPECT_THAT(refusal("", {"optimizer.moments=bf16", "optimizer.kind=sgd"}), HasSubstr("kind adamw"));
  EXPECT_THAT(refusal("", {"optimizer.moments=bf16", "train.dtype=f64"}), HasSubstr("train.dtype f32"));
}

TEST(TrainConfig, WithoutAMasterCopyAdamWRoundsBf16) {
  const auto told = [](std::vector<std::string> more) {
    more.emplace_back("optimizer.master=none");
    return refusal("", more);
  };
  EXPECT_EQ(told({"train.weights=bf16"}), "no error");
  EXPECT_EQ(told({"train.weights=bf16", "optimizer.moments=bf16"}), "no error");
  EXPECT_THAT(told({}), HasSubstr("train.weights bf16"));
  EXPECT_THAT(told({"train.weights=bf16", "optimizer.kind=sgd"}), HasSubstr("kind adamw"));
  EXPECT_THAT(told({"train.weights=bf16", "train.dtype=f64"}), HasSubstr("train.dtype f32"));
}

TEST(TrainConfig, SlicesThatDoNotFitAreTold) {
  const auto told = [](const char* slices, const char* layout, const char* context = "model.context=24") {
    return refusal("", {context, "train.batch=1", slices, layout, "model.width=96", "model.heads=4"});
  };
  EXPECT_EQ(told("train.slices=12", "parallel.layout=dp=1"), "no error");
  EXPECT_EQ(told("train.slices=6", "parallel.layout=cp=2,tp=2"), "no error");
  EXPECT_THAT(told("train.slices=5", "parallel.layout=dp=1"),
              HasSubstr("train.slices 5 must divide model.context 24"));
  EXPECT_THAT(
      told("train.slices=12", "parallel.layout=cp=2,tp=2"),
      HasSubstr("divisible by the 4 ranks of cp and tp that share them: up to 64 these fit: 1, 2, 3, 6"));
}

// A launcher says process or mpi and knows nothing of devices.
TEST(TrainConfig, ProcessesWithGpusTalkOverNccl) {
  const auto transport = [](const char* device, const char* given) {
    return parse("", {"parallel.layout=dp=2", std::string("train.device=") + device,
                      std::string("parallel.transport=") + given})
        .parallel.transport;
  };
  for (const char* given : {"process", "mpi", "nccl"}) {
    EXPECT_EQ(transport("cuda", given), TransportKind::nccl) << given;
  }
  EXPECT_EQ(transport("cuda", "threads"), TransportKind::threads);
  EXPECT_EQ(transport("cpu", "process"), TransportKind::process);
  EXPECT_EQ(transport("cpu", "mpi"), TransportKind::mpi);
}

// Sets the field to a value that it does not have.
void change(ConfigTable& table, const std::string& name) {
  const std::string before = table.field(name).text();
  for (const char* value :
       {"3",    "300",        "1",      "0.25", "true",      "false",   "sgd",       "bpe",
        "f64",  "overlapped", "linear", "mpi",  "layernorm", "learned", "gelu_tanh", "sigmoid",
        "full", "mla",        "bf16",   "fp8",  "cuda",      "none"}) {
    try {
      table.set(name + "=" + value);
    } catch (const Error&) {
      continue;
    }
    if (table.field(name).text() != before) return;
  }
  ADD_FAILURE() << name << " takes nothing but " << before;
}

// No field is bound twice or not at all.
TEST(TrainConfig, EveryFieldIsBoundToItsOwnVariable) {
  TrainConfig c = parse("");
  ConfigTable table = train_table(c);
  const std::string before = table.toml();
  const std::vector<std::string> lines = lines_of(before);
  size_t fields = 0;
  std::string section;
  for (const std::string& line : lines) {
    if (line.starts_with('[')) section = line.substr(1, line.size() - 2);
    const size_t equals = line.find(" = ");
    if (equals == std::string::npos) continue;
    const std::string name = section + "." + line.substr(0, equals);
    change(table, name);
    const std::vector<std::string> after = lines_of(table.toml());
    ASSERT_EQ(after.size(), lines.size());
    std::vector<std::string> changed;
    for (size_t i = 0; i < lines.size(); ++i) {
      if (after[i] != lines[i]) changed.push_back(lines[i]);
    }
    EXPECT_THAT(changed, ElementsAre(line)) << name;
    table.set(name + "=" + line.substr(equals + 3));
    EXPECT_EQ(table.toml(), before) << name;
    ++fields;
  }
  EXPECT_GT(fields, 50u);
}

TEST(TrainConfig, SizesThatDoNotFitAreNamedWithTheirPlace) {
  EXPECT_EQ(refusal("[model]\nwidth = 130\nheads = 4\n"),
            "a.toml:2: model.width 130 is not a multiple of model.heads 4");
  EXPECT_EQ(refusal("[model]\nwidth = 128\n", {"model.heads=3"}),
            "a.toml:2: model.width 128 is not a multiple of model.heads 3");
  EXPECT_EQ(refusal("", {"model.heads=3"}),
            "--set model.heads=3: model.width 128 is not a multiple of model.heads 3");
  EXPECT_THAT(refusal("[model]\nheads = 4\nkv_heads = 3\n"),
              HasSubstr("a.toml:2: model.heads 4 is not a multiple"));
  EXPECT_THAT(refusal("[model]\nmlp = \"moe\"\n[moe]\nexperts = 6\ntop_k = 7\n"), HasSubstr("moe.top_k 7"));
  EXPECT_EQ(refusal("[model]\nmlp = \"moe\"\n[moe]\nexperts = 6\n[parallel]\nlayout = \"dp=4,ep=4\"\n"),
            "a.toml:6: parallel.layout \"dp=4,ep=4\": ep = 4 does not divide moe.experts 6: it may be 1, 2, "
            "3 or 6; these layouts of 4 ranks fit: \"dp=4,ep=2\", \"dp=4\", \"dp=4,ep=2,etp=2\"");
  EXPECT_EQ(
      refusal("[model]\nmlp = \"moe\"\n[moe]\nexpert_width = 6\n[parallel]\nlayout = \"dp=4,etp=4\"\n"),
      "a.toml:6: parallel.layout \"dp=4,etp=4\": etp = 4 does not divide moe.expert_width 6: it may be 1, "
      "2, 3 or 6; these layouts of 4 ranks fit: \"dp=4,etp=2\", \"dp=4\", \"dp=4,ep=2,etp=2\"");
  EXPECT_THAT(refusal("[parallel]\nlayout = \"dp=2,etp=2\"\n"),
              HasSubstr("etp = 2 needs model.mlp = \"moe\""));
  EXPECT_EQ(
      refusal("[train]\nbatch = 6\n[parallel]\nranks = 4\n"),
      "a.toml:2: train.batch 6 is not a multiple of the 4 data-parallel ranks; these layouts of 4 ranks "
      "fit: \"dp=2,cp=2\", \"dp=2,tp=2\", \"pp=2,dp=2\"");
  EXPECT_EQ(refusal("[train]\nbatch = 12\nmicrobatch = 4\n[parallel]\nranks = 2\n"),
            "a.toml:3: train.microbatch 4 does not divide the 6 sequences that each of 2 data-parallel ranks "
            "has of train.batch 12; these layouts of 2 ranks fit: \"cp=2\", \"tp=2\", \"pp=2\"");
  EXPECT_EQ(refusal("[moe]\ndense_layers = 5\n", {"model.layers=4"}),
            "a.toml:2: moe.dense_layers 5 are more than model.layers 4");
  EXPECT_EQ(refusal("[optimizer]\nlr = 1e-5\n"),
            "a.toml:2: optimizer.min_lr 0.0001 is above optimizer.lr 1e-05");
  EXPECT_EQ(refusal("[optimizer]\nlr = 1e-5\ndecay = \"constant\"\n"), "no error");
}

TEST(TrainConfig, UnknownKeysNameTheNearest) {
  EXPECT_EQ(refusal("[optimizer]\nwarm_up = 3\n"),
            "a.toml:2: unknown key \"warm_up\" in [optimizer]; the nearest known key is \"warmup\"");
  EXPECT_EQ(refusal("[model]\nvocabulary = 3\n"),
            "a.toml:2: unknown key \"vocabulary\" in [model]; the nearest known key is \"layers\"");
  EXPECT_EQ(refusal("[model]\nexperts = 3\n"),
            "a.toml:2: unknown key \"experts\" in [model]; it belongs to [moe]");
}

TEST(TrainConfig, LayoutAndRanksComplementEachOther) {
  EXPECT_EQ(parse("", {"parallel.ranks=4"}).parallel.layout, "dp=4");
  EXPECT_EQ(parse("", {"parallel.layout=dp=2"}).parallel.ranks, 2);
  const auto layout_of_moe = [](const char* layout) {
    return parse("", {"model.mlp=moe", "parallel.ranks=4", layout}).parallel.layout;
  };
  EXPECT_EQ(layout_of_moe("parallel.layout=ep=2"), "dp=4,ep=2");
  EXPECT_EQ(layout_of_moe("parallel.layout=dp=4,ep=4"), "dp=4,ep=4");
  EXPECT_EQ(layout_of_moe("parallel.layout=tp=2,ep=4"), "dp=2,tp=2,ep=4");
  EXPECT_EQ(refusal("", {"parallel.ranks=4", "parallel.layout=dp=2"}),
            "--set parallel.layout=dp=2: parallel.layout \"dp=2\" does not fit parallel.ranks 4: its axes "
            "pp, dp, cp "
            "and tp make 2 ranks");
  EXPECT_THAT(refusal("", {"parallel.layout=ep=2"}), HasSubstr("does not divide the dp·cp·tp = 1 ranks"));
  EXPECT_THAT(refusal("", {"parallel.layout=xp=2"}), HasSubstr("xp=2"));
  EXPECT_THAT(
      refusal("", {"parallel.layout=dp=2,ep=2"}),
      HasSubstr("dp=2,ep=2: parallel.layout \"dp=2,ep=2\": ep = 2 needs model.mlp = \"moe\"; these layouts"));
  EXPECT_EQ(
      refusal("", {"parallel.layout=tp=3", "model.heads=8", "model.width=128"}),
      "--set parallel.layout=tp=3: parallel.layout \"tp=3\": tp = 3 does not fit model.heads 8: it may be "
      "1, 2, 4 or 8; these layouts of 3 ranks fit: \"dp=3\", \"cp=3\", \"pp=3\"");
  const auto fitting = [](const char* layout, const Overrides& others) {
    Overrides all = {std::string("parallel.layout=") + layout, "model.layers=2", "train.batch=16"};
    all.insert(all.end(), others.begin(), others.end());
    const std::string told = refusal("", all);
    return told.substr(std::min(told.size(), told.find("; these")));
  };
  EXPECT_EQ(fitting("pp=3", {"model.heads=4", "model.context=64"}),
            "; these layouts of 2 ranks fit: \"pp=2\", \"dp=2\", \"cp=2\"");
  EXPECT_EQ(fitting("pp=3", {"train.microbatch=3"}), "");  // no layout's fault
  EXPECT_EQ(fitting("dp=1", {"train.microbatch=3"}), "");  // there is none
  EXPECT_EQ(fitting("pp=3,dp=43", {}), "");                // too many to look
  // Of an even number of stages only, and none for one.
  EXPECT_EQ(fitting("pp=3,tp=2", {"train.schedule=dualpipe", "train.microbatch=1", "model.heads=4"}),
            "; these layouts of 4 ranks fit: \"pp=2,tp=2\", \"pp=2,dp=2\", \"pp=2,cp=2\"");
  EXPECT_THAT(refusal("", {"parallel.layout=tp=4", "model.heads=12", "model.width=144", "model.kv_heads=6"}),
              HasSubstr("tp = 4 does not fit model.kv_heads 6: it may be 1, 2, 3, 6 or 12"));
  EXPECT_THAT(refusal("", {"parallel.layout=tp=2", "train.batch=1", "model.context=63"}),
              HasSubstr("train.microbatch 1 · model.context 63 = 63 rows are not divisible by cp·tp = 2"));
  EXPECT_EQ(
      parse("", {"parallel.layout=tp=2", "train.batch=1", "model.context=63", "parallel.sequence=false"})
          .parallel.ranks,
      2);
}

TEST(TrainConfig, PipelinesThatCannotRunAreRefused) {
  EXPECT_EQ(parse("", {}).train.schedule, "sequential");
  EXPECT_EQ(parse("", {"parallel.layout=pp=2"}).train.schedule, "1f1b");
  EXPECT_THAT(refusal("", {"train.schedule=dualpip"}), HasSubstr("the nearest is dualpipe"));
  EXPECT_THAT(refusal("", {"parallel.layout=pp=2", "train.schedule=dualpipe", "train.microbatch=6"}),
              HasSubstr("at least 4"));
  EXPECT_THAT(refusal("", {"parallel.layout=pp=2", "train.schedule=overlapped"}), HasSubstr("one stage"));
  EXPECT_THAT(refusal("", {"parallel.layout=pp=8"}), HasSubstr("8 stages"));
  EXPECT_THAT(refusal("", {"parallel.layout=pp=4", "train.schedule=zb-v"}), HasSubstr("model.layers 4"));
  EXPECT_THAT(refusal("", {"parallel.layout=pp=2", "parallel.layers=1,2"}),
              HasSubstr("parallel.layers \"1,2\": 2 stages of 3 layers in all"));
  EXPECT_THAT(refusal("", {"parallel.layout=pp=2", "parallel.layers=4"}), HasSubstr("there are 2 stages"));
  EXPECT_THAT(refusal("", {"parallel.layout=pp=2", "parallel.layers=1,x"}), HasSubstr("is not a list"));
  EXPECT_EQ(stage_layers(parse("", {"parallel.layout=pp=3", "parallel.layers=0,4,0"}).parallel),
            (std::vector<int>{0, 4, 0}));
}

TEST(TrainConfig, UlyssesTakesWhatTheHeadsAllow) {
  const auto ulysses = [](const char* layout, const char* heads, const char* wanted) {
    return parse("", {layout, heads, wanted, "model.width=144", "model.context=72"}).parallel.ulysses;
  };
  EXPECT_EQ(ulysses("parallel.layout=dp=1", "model.heads=6", "parallel.ulysses=0"), 1);
  EXPECT_EQ(ulysses("parallel.layout=cp=6", "model.heads=6", "parallel.ulysses=0"), 6);
  EXPECT_EQ(ulysses("parallel.layout=cp=4", "model.heads=6", "parallel.ulysses=0"), 2);
  EXPECT_EQ(ulysses("parallel.layout=cp=4,tp=2", "model.heads=6", "parallel.ulysses=0"), 1);
  EXPECT_EQ(ulysses("parallel.layout=cp=6,tp=2", "model.heads=6", "parallel.ulysses=0"), 3);
  EXPECT_EQ(ulysses("parallel.layout=cp=8", "model.heads=12", "model.kv_heads=2"), 4);  // shared
  EXPECT_EQ(ulysses("parallel.layout=cp=6", "model.heads=12", "model.kv_heads=4"), 2);
  EXPECT_EQ(ulysses("parallel.layout=cp=6", "model.heads=6", "parallel.ulysses=2"), 2);
  EXPECT_EQ(
      refusal("", {"parallel.layout=cp=4", "parallel.ulysses=3"}),
      "--set parallel.layout=cp=4: parallel.layout \"cp=4\": parallel.ulysses 3 does not fit cp = 4 and "
      "the 4 heads of a rank of tp: it may be 1, 2 or 4");
  EXPECT_THAT(refusal("", {"parallel.layout=cp=4,tp=2", "parallel.ulysses=4"}),
              HasSubstr("it may be 1 or 2"));
  EXPECT_THAT(refusal("", {"parallel.ulysses=2"}), HasSubstr("it may be 1"));
}

TEST(TrainConfig, ListsEveryKeyForHelp) {
  TrainConfig c;
  const std::string listing = train_table(c).listing();
  for (const char* text : {"[model]", "[moe]", "[data]", "[train]", "[optimizer]", "[parallel]",
                           "seed = 1337", "decay = \"cosine\"", "one of char, byte, bpe"}) {
    EXPECT_THAT(listing, HasSubstr(text));
  }
  size_t longest = 0;
  for (size_t at = 0; at < listing.size();) {
    const size_t end = listing.find('\n', at);
    longest = std::max(longest, end - at);
    at = end + 1;
  }
  EXPECT_LE(longest, 140u) << listing;
}

TEST(TrainConfig, MissingFile) {
  try {
    load_train_config("/nowhere/a.toml", {});
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "cannot read /nowhere/a.toml: No such file or directory");
  }
}

}  // namespace
}  // namespace phalanx
