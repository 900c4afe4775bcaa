// phalanx generate: continue a prompt with a trained model, streaming.
#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/options.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/infer/decode.h"
#include "phalanx/train/resume.h"

namespace phalanx {
namespace {

struct Options {
  std::string model;
  std::string prompt;
  GenerateOptions generate = {.tokens = 500, .sampler = {.temperature = 0.8}};
  bool json = false;
};

// May hold zero bytes.
void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

void print_json(const Tokenizer& tokenizer, int64_t prompt_tokens, const GenerateResult& result) {
  const double rate = result.seconds > 0 ? static_cast<double>(result.tokens.size()) / result.seconds : 0;
  const nlohmann::json j = {{"prompt_tokens", prompt_tokens},
                            {"tokens", result.tokens},
                            {"text", tokenizer.decode(result.tokens)},
                            {"ms_first", 1e3 * result.seconds_to_first},
                            {"tokens_per_s", rate}};
  std::printf("%s\n", j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

void run_generate(const Options& o) {
  refuse_launcher("generate");
  check(o.generate);
  const SavedRun saved = open_run(o.model);
  if (!saved.note.empty()) note(format("using {}, not the latest: {}", saved.path, saved.note));
  const Tokenizer& tokenizer = *saved.tokenizer;
  const std::vector<int32_t> prompt = tokenizer.encode(o.prompt);
  catch_interrupts();
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    ModelConfig config = saved.config.model;
    config.mtp = 0;  // of training alone
    config.vocabulary = tokenizer.vocabulary();
    Mesh mesh(world, {});
    ParameterStore parameters(mesh, saved.config.train.dtype);
    Transformer model(parameters, config, 0);
    parameters.initialise(0);
    load_weights(parameters, saved.path, world);
    TextStream stream(tokenizer);
    if (!o.json) print(o.prompt);
    const GenerateResult result = generate(model, prompt, o.generate, [&](int32_t token) {
      if (!o.json) {
        print(stream.next(token));
        std::fflush(stdout);
      }
      return !interrupted();
    });
    if (o.json) return print_json(tokenizer, static_cast<int64_t>(prompt.size()), result);
    print(stream.finish() + "\n");
  });
  if (interrupted()) throw Error("interrupted");
}

}  // namespace

void add_generate(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("generate", "Continue a text with a trained model");
  command.add_option("--model", options->model, "A checkpoint, or a directory of them (its latest)")
      ->required();
  command.add_option("--prompt", options->prompt, "The text to continue")->required();
  command.add_option("--tokens", options->generate.tokens, "How many to generate")->capture_default_str();
  SamplerConfig& sampler = options->generate.sampler;
  command.add_option("--temperature", sampler.temperature, "0: always the likeliest token")
      ->capture_default_str();
  command.add_option("--top-k", sampler.top_k, "Only the k likeliest tokens (0: all)")->capture_default_str();
  command.add_option("--top-p", sampler.top_p, "Only the likeliest tokens of this total probability")
      ->capture_default_str();
  command.add_option("--seed", sampler.seed, "The same seed gives the same text")->capture_default_str();
  command.add_flag("--json", options->json, "One JSON object instead of streaming text");
  command.footer(
      "Example:\n  phalanx generate --model out --prompt \"ROMEO:\" --tokens 300 --temperature 0.8 --seed 1");
  command.callback([options] { run_generate(*options); });
}

}  // namespace phalanx
