// phalanx export: a checkpoint as a directory that Hugging Face's transformers load.
#include <CLI/CLI.hpp>
#include <memory>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/options.h"
#include "phalanx/base/error.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/model/hf_config.h"
#include "phalanx/model/hf_weights.h"
#include "phalanx/train/resume.h"

namespace phalanx {
namespace {

struct Options {
  std::string checkpoint;
  std::string out;
};

void run_export(const Options& o) {
  refuse_launcher("export");
  const SavedRun saved = open_run(o.checkpoint);
  if (!saved.note.empty()) note(format("using {}, not the latest: {}", saved.path, saved.note));
  ModelConfig config = saved.config.model;
  config.vocabulary = saved.tokenizer->vocabulary();
  hf_family(config);  // a model that has none is told before it is read
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    Mesh mesh(world, {});
    ParameterStore parameters(mesh, saved.config.train.dtype);
    const Transformer model(parameters, config, 0);
    parameters.initialise(0);
    load_weights(parameters, saved.path, world);
    save_hf_model(parameters, config, o.out);
  });
  note(format("wrote {}/config.json and {}/model.safetensors", o.out, o.out));
}

}  // namespace

void add_export(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("export", "Write a model in Hugging Face's format");
  command.add_option("checkpoint", options->checkpoint, "A checkpoint, or a directory of them (its latest)")
      ->required();
  command.add_option("--out", options->out, "The directory to make")->required();
  command.footer(
      "GPT-2, Llama, Mixtral and DeepSeek-V3, by what the model is.\n"
      "Example:\n  phalanx export out/demo --out out/demo-hf");
  command.callback([options] { run_export(*options); });
}

}  // namespace phalanx
