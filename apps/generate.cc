// phalanx generate: continue a prompt with a trained model, streaming.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/options.h"
#include "phalanx/comm/transport/threads.h"
#include "phalanx/infer/decode.h"
#include "phalanx/ops/cast.h"
#include "phalanx/train/resume.h"
#include "phalanx/train/saved_checkpoint.h"

namespace phalanx {
namespace {

struct Options {
  std::string model;
  std::string prompt;
  GenerateOptions generate = {.tokens = 500, .sampler = {.temperature = 0.8}};
  Device::Kind device = Device::Kind::cpu;
  std::optional<KeptWeights> weights;  // none: as the run has them
  bool json = false;
};

// How the weights of a saved run are kept to generate from.
DType weights_dtype(const Options& o, const TrainConfig& saved) {
  const bool on_gpu = o.device == Device::Kind::cuda;
  if (!on_gpu && o.weights == KeptWeights::bf16) {
    throw Error("--weights bf16: the CPU computes in {}, as the run did; --device cuda takes bf16",
                dtype_name(saved.train.dtype));
  }
  const bool narrow = on_gpu && o.weights.value_or(saved.train.weights) == KeptWeights::bf16;
  return narrow ? DType::bf16 : saved.train.dtype;
}

// Fills in what the checkpoint has, rounded where the store is narrower, one parameter at a time.
void load(ParameterStore& parameters, const SavedRun& saved, Group& world) {
  if (parameters.dtype() != DType::bf16) return load_weights(parameters, saved.path, world);
  SavedCheckpoint file(saved.path);
  const auto read = [&](const std::string& name, const LocalSlice& slice) {
    const Tensor values = Tensor::empty(slice.local, saved.config.train.dtype);
    file.read(name, slice.full, box_of(slice), values);
    return values;
  };
  for (const Parameter& p : parameters.all()) {
    narrow_into(p.value(), read(p.name(), p.slice()));
  }
  for (const State& s : parameters.states()) {
    const Tensor values = read(s.name, whole_slice(s.value.shape()));
    const Tensor f32 = Tensor::empty(values.shape(), DType::f32);
    visit_float(values.dtype(), [&](auto zero) {
      std::ranges::transform(values.span<const decltype(zero)>(), f32.data<float>(),
                             [](auto v) { return static_cast<float>(v); });
    });
    copy_into(s.value, f32);
  }
}

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
  const DType dtype = weights_dtype(o, saved.config);
  const Device device = device_of_rank(o.device, 0);
  run_thread_ranks({.ranks = 1}, [&](Group& world) {
    const DeviceScope scope(device);
    ModelConfig config = saved.config.model;
    config.mtp = 0;  // of training alone
    config.vocabulary = tokenizer.vocabulary();
    Mesh mesh(world, {});
    ParameterStore parameters(mesh, dtype, {}, {.device = device});
    Transformer model(parameters, config, 0);
    parameters.initialise(0);
    load(parameters, saved, world);
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
  const std::map<std::string, Device::Kind> devices = {{"cpu", Device::Kind::cpu},
                                                       {"cuda", Device::Kind::cuda}};
  command.add_option("--device", options->device, "cpu, or cuda: an NVIDIA GPU computes")
      ->transform(CLI::CheckedTransformer(devices).description("{cpu,cuda}"));
  const std::map<std::string, KeptWeights> kept = {{"same", KeptWeights::same}, {"bf16", KeptWeights::bf16}};
  command
      .add_option("--weights", options->weights,
                  "On a GPU: bf16, or same, in the dtype of the run; else as the run kept them")
      ->transform(CLI::CheckedTransformer(kept).description("{same,bf16}"));
  command.add_flag("--json", options->json, "One JSON object instead of streaming text");
  command.footer(
      "Example:\n  phalanx generate --model out --prompt \"ROMEO:\" --tokens 300 --temperature 0.8 --seed 1");
  command.callback([options] { run_generate(*options); });
}

}  // namespace phalanx
