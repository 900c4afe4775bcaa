// Saving and loading when nothing goes wrong, in and between layouts.
#include "phalanx/train/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <random>

#include "phalanx/base/file.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/parallel/parameter_store.h"
#include "phalanx/train/saved_checkpoint.h"
#include "tests/temporary_directory.h"
#include "tests/train/checkpoint_fixture.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;
using phalanx::testing::load_step;
using phalanx::testing::Loaded;
using phalanx::testing::names_in;
using phalanx::testing::save_step;
using phalanx::testing::SaveCase;
using phalanx::testing::some_tensors;
using phalanx::testing::TemporaryDirectory;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

struct Move {
  Layout from;
  Layout to;
};

class CheckpointLayouts : public ::testing::TestWithParam<Move> {};

TEST_P(CheckpointLayouts, LoadBitEqual) {
  const int64_t step = std::random_device{}() % 100'000;
  SCOPED_TRACE(step);
  const TemporaryDirectory dir;
  const SaveCase from{.specs = some_tensors(300), .layout = GetParam().from};  // one of 4.9 MB: two blocks
  const SaveCase to{.specs = some_tensors(300), .layout = GetParam().to};
  const fs::path path = save_step(dir / "run", step, from);
  EXPECT_EQ(path, dir / "run" / checkpoint_name(step));
  for (const fs::path& given :
       {dir / "run", path, path / "manifest.json", dir / "run/latest", dir / "run/"}) {
    const Loaded loaded = load_step(given, to);
    EXPECT_EQ(loaded.step, step);
    EXPECT_EQ(loaded.path, path);
    EXPECT_EQ(loaded.note, "");
    EXPECT_EQ(loaded.difference, "");
  }
}

INSTANTIATE_TEST_SUITE_P(Moves, CheckpointLayouts,
                         ::testing::Values(Move{{}, {}}, Move{{.dp = 2, .ep = 2}, {}},
                                           Move{{}, {.dp = 2, .ep = 2}},
                                           Move{{.dp = 2, .ep = 2}, {.dp = 2, .ep = 2}},
                                           Move{{.dp = 4, .ep = 2}, {.dp = 2, .ep = 1}},
                                           Move{{.dp = 2, .tp = 2}, {.dp = 4, .ep = 4}},
                                           Move{{.tp = 4}, {.dp = 2, .ep = 2}},
                                           Move{{.dp = 2, .tp = 2, .ep = 2, .etp = 2}, {.dp = 3}},
                                           Move{{.cp = 2}, {.dp = 2, .tp = 2, .etp = 4}}),
                         [](const auto& move) {
                           std::string name = move.param.from.text() + "_to_" + move.param.to.text();
                           std::erase_if(name, [](char c) { return c == '=' || c == ','; });
                           return name;
                         });

TEST(Checkpoint, IsFoundByAnyOfItsPaths) {
  const TemporaryDirectory dir;
  save_step(dir / "a/run", 1);
  const fs::path path = save_step(dir / "a/run", 2);
  for (const char* given : {"a/run", "a/run/", "a/run/latest", "a/run/step-00000002", "a/run/step-00000002/",
                            "a/../a/run/step-00000002/manifest.json"}) {
    EXPECT_EQ(load_step(dir / given).path, path) << given;
  }
  EXPECT_EQ(load_step(dir / "a/run/step-00000001").step, 1);
}

TEST(Checkpoint, HoldsEveryTensorOnce) {
  for (const Layout& layout : {Layout{}, Layout{.dp = 4, .ep = 2}, Layout{.dp = 2, .tp = 2, .etp = 2}}) {
    const TemporaryDirectory dir;
    const SavedCheckpoint saved(save_step(dir.path(), 5, {.layout = layout}));
    uint64_t expected = 0;
    for (const auto& spec : some_tensors()) {
      expected += static_cast<uint64_t>(spec.shape.numel()) * dtype_size(spec.dtype);
    }
    uint64_t data = 0;
    for (const auto& [name, file] : saved.manifest().files) {
      const SafetensorsFile shard(saved.path() / name);
      data += shard.file_bytes() - shard.data_begin();
      for (const StoredTensor& t : shard.tensors()) {
        const size_t size = dtype_size(*dtype_of_safetensors(t.dtype));
        EXPECT_EQ((shard.data_begin() + t.begin) % size, 0u) << t.name << " is not aligned";
      }
    }
    EXPECT_EQ(data, expected);
    EXPECT_EQ(saved.manifest().ranks, layout.ranks());
    EXPECT_EQ(saved.manifest().layout, layout.text());
  }
}

TEST(Checkpoint, ARankMayHoldSeveralPartsOfATensor) {
  const TemporaryDirectory dir;
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    const Shape full{3, 4};
    std::vector<NamedTensor> parts;
    for (int64_t row = 0; row < 3; ++row) {
      const std::vector<float> values(4, static_cast<float>(row));
      parts.push_back({.name = "w",
                       .local = Tensor::of(Shape{1, 4}, std::span<const float>(values)),
                       .slice = {.full = full, .local = {1, 4}, .begin = {row, 0}}});
    }
    save_checkpoint(dir.path(), {.step = 1, .tensors = parts}, world);
    const Tensor w = Tensor::empty(full, DType::f32);
    const std::vector<NamedTensor> wanted = {{.name = "w", .local = w, .slice = whole_slice(full)}};
    load_checkpoint(dir.path(), wanted, world);
    for (int64_t i = 0; i < 12; ++i) EXPECT_EQ(w.data<float>()[i], static_cast<float>(i / 4));
  });
}

// As a trainer does it: the parameters of a store under one layout, read under another.
TEST(Checkpoint, ParametersOfOneLayoutLoadInAnother) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  const TemporaryDirectory dir;
  const auto with_store = [&](const Layout& layout, const auto& body) {
    run_thread_ranks({.ranks = layout.ranks()}, [&](Group& world) {
      Mesh mesh(world, layout);
      ParameterStore store(mesh, DType::f32);
      store.add({.name = "dense", .shape = {7, 3}, .placement = {}, .init = {}});
      store.add({.name = "experts", .shape = {4, 3, 5}, .placement = {{Axis::ep, 0}}, .init = {}});
      store.add({.name = "columns", .shape = {3, 8}, .placement = {{Axis::tp, 1}}, .init = {}});
      store.add({.name = "vocabulary",
                 .shape = {5, 3},
                 .placement = {{.axis = Axis::tp, .dim = 0, .uneven = true}},
                 .init = {}});
      store.add({.name = "kv",
                 .shape = {2, 4},
                 .placement = {{.axis = Axis::tp, .dim = 0, .parts = std::min(mesh.size(Axis::tp), 2)}},
                 .init = {}});
      store.initialise(seed);
      std::vector<NamedTensor> tensors;
      for (Parameter& p : store.all()) {
        tensors.push_back(
            {.name = p.name(), .local = p.value(), .slice = p.slice(), .written_here = p.is_owner()});
      }
      body(world, tensors);
    });
  };
  const Layout layouts[] = {{.dp = 2, .ep = 2}, {}, {.tp = 4}, {.dp = 2, .tp = 2, .ep = 4}, {.tp = 2}};
  for (const Layout& saved : layouts) {
    with_store(saved, [&](Group& world, const std::vector<NamedTensor>& tensors) {
      save_checkpoint(dir.path(), {.step = 1, .tensors = tensors}, world);
    });
    for (const Layout& loaded : layouts) {
      with_store(loaded, [&](Group& world, const std::vector<NamedTensor>& tensors) {
        std::vector<std::vector<float>> expected;
        for (const NamedTensor& t : tensors) {
          const std::span<float> values = t.local.span<float>();
          expected.emplace_back(values.begin(), values.end());
          std::ranges::fill(values, 0.0f);
        }
        load_checkpoint(dir.path(), tensors, world);
        for (size_t i = 0; i < tensors.size(); ++i) {
          EXPECT_TRUE(std::ranges::equal(tensors[i].local.span<float>(), expected[i]))
              << tensors[i].name << " of " << saved.text() << " in " << loaded.text();
        }
      });
    }
  }
}

TEST(Checkpoint, LoadingSaysWhatDoesNotFit) {
  const TemporaryDirectory dir;
  save_step(dir.path(), 3);
  const auto load_one = [&](const std::string& name, const Shape& shape, DType dtype) {
    run_thread_ranks({.ranks = 2}, [&](Group& world) {
      const std::vector<NamedTensor> wanted = {
          {.name = name, .local = Tensor::empty(shape, dtype), .slice = whole_slice(shape)}};
      load_checkpoint(dir.path(), wanted, world);
    });
  };
  EXPECT_NO_THROW(load_one("embedding", {12, 6}, DType::f32));
  EXPECT_THAT(
      [&] {
        load_one("embeding", {12, 6}, DType::f32);
      },
      ThrowsMessage<Error>(AllOf(HasSubstr("step-00000003: tensor \"embeding\" is missing"),
                                 HasSubstr("saved by another model?"))));
  EXPECT_THAT(
      [&] {
        load_one("embedding", {12, 7}, DType::f32);
      },
      ThrowsMessage<Error>(HasSubstr("\"embedding\" has shape [12, 6] of f32, [12, 7] of f32 is expected")));
  EXPECT_THAT(
      [&] {
        load_one("embedding", {12, 6}, DType::f64);
      },
      ThrowsMessage<Error>(HasSubstr("shape [12, 6] of f32, [12, 6] of f64 is expected")));
}

TEST(Checkpoint, AbsentOnesAreErrors) {
  const TemporaryDirectory dir;
  EXPECT_THAT([&] { load_step(dir / "none"); }, ThrowsMessage<Error>(HasSubstr("none: no such checkpoint")));
  EXPECT_THAT([&] { load_step(dir.path()); },
              ThrowsMessage<Error>(HasSubstr("there is no complete checkpoint")));
  save_step(dir.path(), 3);
  EXPECT_THAT([&] { load_step(dir / "step-00000004"); },
              ThrowsMessage<Error>(AllOf(HasSubstr("step-00000004 is not a complete checkpoint"),
                                         HasSubstr("step-00000003 is complete: use "))));
}

TEST(Checkpoint, KeepsAsManyAsAsked) {
  const TemporaryDirectory dir;
  const SaveCase three{.specs = some_tensors(), .layout = {}, .options = {.keep_last = 3}};
  for (int64_t step = 10; step <= 60; step += 10) save_step(dir.path(), step, three);
  EXPECT_THAT(names_in(dir.path()), ElementsAre("latest", "step-00000040", "step-00000050", "step-00000060"));
  for (const int64_t step : {40, 50, 60}) {
    EXPECT_EQ(load_step(dir / checkpoint_name(step), three).difference, "");
  }
  const SaveCase all{.specs = some_tensors(), .layout = {}, .options = {}};
  save_step(dir.path(), 70, all);
  save_step(dir.path(), 80, all);
  EXPECT_EQ(names_in(dir.path()).size(), 6u);
  const SaveCase one{.specs = some_tensors(), .layout = {}, .options = {.keep_last = 1}};
  save_step(dir.path(), 90, one);
  EXPECT_THAT(names_in(dir.path()), ElementsAre("latest", "step-00000090"));
}

// A damaged one does not count as one that is kept.
TEST(Checkpoint, PruningKeepsCompleteOnes) {
  const TemporaryDirectory dir;
  const SaveCase two{.specs = some_tensors(), .layout = {}, .options = {.keep_last = 2}};
  save_step(dir.path(), 1, two);
  save_step(dir.path(), 2, two);
  fs::resize_file(dir / "step-00000002/rank-00000.safetensors", 100);
  save_step(dir.path(), 3, two);
  EXPECT_THAT(names_in(dir.path()), ElementsAre("latest", "step-00000001", "step-00000002", "step-00000003"));
  save_step(dir.path(), 4, two);
  EXPECT_THAT(names_in(dir.path()), ElementsAre("latest", "step-00000003", "step-00000004"));
}

// Going on from step 20 after 30 was saved: 30 stays until the new course of the run gets there.
TEST(Checkpoint, AnotherCourseOfTheRunReplacesAndKeeps) {
  const TemporaryDirectory dir;
  const SaveCase two{.specs = some_tensors(), .layout = {}, .options = {.keep_last = 2}};
  save_step(dir.path(), 20, two);
  save_step(dir.path(), 30, two);
  save_step(dir.path(), 25, two);
  EXPECT_EQ(load_step(dir.path(), two).step, 25);
  EXPECT_THAT(names_in(dir.path()), ElementsAre("latest", "step-00000020", "step-00000025", "step-00000030"));
  SaveCase narrower = two;
  narrower.specs.resize(3);
  save_step(dir.path(), 30, narrower);
  EXPECT_EQ(load_step(dir.path(), narrower).step, 30);
  EXPECT_EQ(SavedCheckpoint(dir / "step-00000030").manifest().tensors.size(), 3u);
  EXPECT_THAT(names_in(dir.path()), ElementsAre("latest", "step-00000025", "step-00000030"));
}

TEST(Checkpoint, CleansUpAfterSavesThatNeverEnded) {
  const TemporaryDirectory dir;
  save_step(dir.path(), 1);
  fs::create_directory(dir / ".writing-step-00000007");
  fs::create_directory(dir / ".removing-step-00000000");
  write_new_file(dir / ".writing-step-00000007/rank-00000.safetensors", "half");
  write_new_file(dir / ".writing-latest", "half");
  write_new_file(dir / "notes.txt", "mine");
  save_step(dir.path(), 7);
  EXPECT_THAT(names_in(dir.path()), ElementsAre("latest", "notes.txt", "step-00000001", "step-00000007"));
}

TEST(Checkpoint, PartsThatDoNotMakeUpATensorAreRefused) {
  const TemporaryDirectory dir;
  const auto save_parts = [&](bool both, const Shape& full_of_second) {
    run_thread_ranks({.ranks = 2}, [&](Group& world) {
      const Shape full = world.rank() == 0 ? Shape{4} : full_of_second;
      const std::vector<NamedTensor> tensors = {{.name = "w",
                                                 .local = Tensor::zeros({2}, DType::f32),
                                                 .slice = {.full = full, .local = {2}, .begin = {2}},
                                                 .written_here = both || world.rank() == 0}};
      save_checkpoint(dir.path(), {.step = 1, .tensors = tensors}, world);
    });
  };
  EXPECT_THAT([&] { save_parts(false, {4}); },
              ThrowsMessage<Error>(HasSubstr("tensor \"w\": the parts hold 2 of 4")));
  EXPECT_THAT([&] { save_parts(true, {4}); }, ThrowsMessage<Error>(HasSubstr("overlap")));
  EXPECT_THAT([&] { save_parts(true, {5}); },
              ThrowsMessage<Error>(HasSubstr("shape [4] of f32 on one rank")));
  EXPECT_TRUE(names_in(dir.path()).empty());
}

TEST(TrainerState, KeepsEveryBit) {
  std::mt19937_64 random(std::random_device{}());
  Manifest manifest;
  for (int i = 0; i < 500; ++i) {
    manifest.state.set(format("d{}", i), std::bit_cast<double>(random()));
    manifest.state.set(format("u{}", i), uint64_t{random()} >> (random() % 64));
    manifest.state.set(format("i{}", i), static_cast<int64_t>(random()) >> (random() % 64));
  }
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const double d : {0.0, -0.0, 1.0, 1e300, 5e-324, 0.1, kInfinity, -kInfinity, std::nan("")}) {
    manifest.state.set(format("{}", d), d);
  }
  manifest.state.set("text", std::string("\0 \x7f \"é\n", 9));
  manifest.state.set("yes", true);
  const Manifest back = parse_manifest(manifest_text(manifest), "here");
  ASSERT_EQ(back.state.values().size(), manifest.state.values().size());
  for (const auto& [key, value] : manifest.state.values()) {
    const TrainerState::Value& found = back.state.values().at(key);
    ASSERT_EQ(found.index(), value.index()) << key;
    if (const auto* d = std::get_if<double>(&value)) {
      EXPECT_EQ(std::bit_cast<uint64_t>(std::get<double>(found)), std::bit_cast<uint64_t>(*d)) << key;
    } else {
      EXPECT_EQ(found, value) << key;
    }
  }
}

TEST(TrainerState, SaysWhatIsMissing) {
  TrainerState state;
  state.set("a", 3);
  EXPECT_EQ(state.get<int64_t>("a"), 3);
  EXPECT_EQ(state.get<uint64_t>("a"), 3u);
  state.set("a", UINT64_MAX);
  EXPECT_EQ(state.get<uint64_t>("a"), UINT64_MAX);
  EXPECT_THAT([&] { state.get<int64_t>("a"); },
              ThrowsMessage<Error>(HasSubstr("\"a\", but as another type")));
  EXPECT_THAT([&] { state.get<double>("b"); }, ThrowsMessage<Error>(HasSubstr("has no \"b\"")));
}

}  // namespace
}  // namespace phalanx
