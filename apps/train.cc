// phalanx train: a run from a TOML file, with a progress line, JSON lines or both.
#include <CLI/CLI.hpp>
#include <charconv>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/options.h"
#include "phalanx/base/file.h"
#include "phalanx/base/units.h"
#include "phalanx/train/initial_model.h"
#include "phalanx/train/report.h"
#include "phalanx/train/resume.h"
#include "phalanx/train/train.h"

namespace phalanx {
namespace {

struct Options {
  ConfigOptions config;
  std::string text;
  std::string resume;
  std::string report;
  std::string trace;
  std::string trace_steps = "2:3";
  bool json = false;
  bool print_config = false;
};

std::string progress(const StepRecord& r, int64_t steps) {
  return format(
      "step {}/{}  loss {:.4f}{}  lr {:.2e}  |g| {:.3f}  {} tokens/s  {:.0f} % of matrix-product speed",
      r.step + 1, steps, r.loss, r.mtp_loss > 0 ? format("  mtp {:.4f}", r.mtp_loss) : "", r.lr, r.grad_norm,
      grouped(static_cast<uint64_t>(r.tokens_per_s)), 100 * r.gemm_share);
}

nlohmann::json json_of(const StepRecord& r) {
  nlohmann::json j = {{"step", r.step},
                      {"loss", r.loss},
                      {"lr", r.lr},
                      {"grad_norm", r.grad_norm},
                      {"tokens_per_s", r.tokens_per_s},
                      {"gemm_share", r.gemm_share}};
  if (r.mtp_loss > 0) j["mtp_loss"] = r.mtp_loss;  // of a model that has such a loss
  return j;
}

// What a run shows while it goes: JSON lines on standard output, or a progress line on standard error, which
// gets the notes in any case.
class Console {
 public:
  Console(bool json, int64_t steps) : json_(json), steps_(steps), line_(stderr) {}

  void step(const StepRecord& r) {
    if (!json_) return line_.show(progress(r, steps_));
    flush();
    pending_ = json_of(r);
  }
  void evaluation(const EvaluationRecord& r) {
    if (!json_) return line_.print(format("step {}: validation loss {:.4f}", r.step, r.val_loss));
    if (pending_.is_null()) return;  // before this run's first step: there is no step to tell it of
    pending_["val_loss"] = r.val_loss;
    flush();
  }
  void note(const std::string& text) { line_.print(text); }
  // An evaluation belongs to the object of the step before it, so that object waits one step.
  void flush() {
    if (pending_.is_null()) return;
    std::printf("%s\n", pending_.dump().c_str());
    std::fflush(stdout);
    pending_ = nullptr;
  }

 private:
  bool json_;
  int64_t steps_;
  ProgressLine line_;
  nlohmann::json pending_;
};

// Shows the leader's last step, however its run ends: in its own process, before that is gone.
struct LastLine {
  Console* console;  // null on other ranks
  ~LastLine() {
    if (console) console->flush();
  }
};

// "FIRST:COUNT".
TraceSteps trace_steps(const std::string& text) {
  TraceSteps steps;
  const char* const end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, steps.first);
  const bool colon = first.ec == std::errc() && first.ptr != end && *first.ptr == ':';
  const auto count = colon ? std::from_chars(first.ptr + 1, end, steps.count) : first;
  const bool read = colon && count.ec == std::errc() && count.ptr == end;
  if (read && steps.first >= 0 && steps.count >= 1) return steps;
  throw Error("--trace-steps is \"{}\": steps before the first traced one, and how many are, as in 2:3",
              text);
}

// The run goes on when its trace cannot be written, and fails at its end.
class TraceFile {
 public:
  TraceFile(std::string path, Console& console) : path_(std::move(path)), console_(console) {}

  void write(const std::string& json) {
    try {
      write_over(path_, json);
      console_.note("wrote " + path_);
    } catch (const Error& e) {
      failure_ = e.what();
      console_.note(failure_);
    }
  }
  void check() const {
    if (!failure_.empty()) throw Error("{}", failure_);
  }

 private:
  std::string path_;
  Console& console_;
  std::string failure_;
};

void run_train(const Options& o) {
  TrainConfig config = with_initial_model(o.config.load());
  if (!o.text.empty()) config.data.text = o.text;
  if (o.print_config) {
    std::printf("%s", to_toml(config).c_str());
    return;
  }
  start_device(config);
  const TraceSteps traced = o.trace.empty() ? TraceSteps() : trace_steps(o.trace_steps);
  for (const std::string& path : {o.report, o.trace}) {
    if (!path.empty()) check_can_write(path);
  }
  // Numbers mean what they meant to the checkpoint, even if the text has changed.
  std::unique_ptr<Tokenizer> tokenizer = o.resume.empty() ? nullptr : open_run(o.resume).tokenizer;
  const Dataset data =
      load_dataset(config.data, config.model.context, config.train.seed, std::move(tokenizer));
  Console console(o.json, config.train.steps);
  TraceFile trace(o.trace, console);
  catch_interrupts();
  const TrainHooks hooks = {.on_step = [&](const StepRecord& r) { console.step(r); },
                            .on_evaluation = [&](const EvaluationRecord& r) { console.evaluation(r); },
                            .on_note = [&](const std::string& note) { console.note(note); },
                            .stop = interrupted,
                            .trace = traced,
                            .on_trace = [&](const std::string& json) { trace.write(json); }};
  run_ranks(launch_options(config.parallel), [&](Group& world) {
    const LastLine last_line{world.rank() == 0 ? &console : nullptr};
    TrainingHistory history = train(config, data, o.resume, world, hooks);
    if (world.rank() != 0) return;
    if (!o.report.empty()) {
      history.title = o.config.path;
      write_report(o.report, history);
      console.note("wrote " + o.report);
    }
    trace.check();
  });
  if (interrupted()) throw Error("interrupted; continue with --resume {}", config.train.out);
}

}  // namespace

void add_train(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("train", "Train a model on a text");
  options->config.add_to(command);
  command.add_option("--text", options->text, "The text to learn, instead of the config's data.text");
  command.add_option("--resume", options->resume,
                     "A checkpoint, or a directory of them: continue from there");
  command.add_option("--report", options->report, "Write an HTML report of the run to this file");
  command.add_option("--trace", options->trace,
                     "Write a timeline of some steps to this file, for Perfetto or chrome://tracing");
  command
      .add_option("--trace-steps", options->trace_steps,
                  "FIRST:COUNT: steps of this run before the traced ones, and how many are")
      ->capture_default_str();
  command.add_flag("--json", options->json, "One JSON object a step on standard output, instead of progress");
  command.add_flag("--print-config", options->print_config, "Print the effective configuration and exit");
  command.footer(
      "Examples:\n"
      "  phalanx train configs/nanogpt_cpu.toml --ranks 2 --set train.steps=100 --report report.html\n"
      "  phalanx train configs/demo_moe.toml --layout pp=2 --set train.steps=5 --trace trace.json\n"
      "  mpirun -n 2 phalanx train configs/nanogpt_cpu.toml --set train.steps=100");
  command.callback([options] { run_train(*options); });
}

}  // namespace phalanx
