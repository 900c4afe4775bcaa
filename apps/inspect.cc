// phalanx inspect: what a checkpoint, a safetensors file or a trace holds.
#include <CLI/CLI.hpp>
#include <memory>

#include "apps/commands.h"
#include "phalanx/base/error.h"
#include "phalanx/train/inspect.h"

namespace phalanx {
namespace {

struct Options {
  std::string path;
  InspectOptions inspect;
};

void run_inspect(const Options& o) {
  const Inspection found = inspect(o.path, o.inspect);
  std::printf("%s", found.text.c_str());
  if (found.problems.empty()) return;
  throw Error("{}: {} problems, the first: {}", o.path, found.problems.size(), found.problems.front());
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("inspect", "Show a checkpoint, a safetensors file or a trace");
  command
      .add_option("path", options->path,
                  "A run's directory, a checkpoint, a .safetensors file, an index or a trace")
      ->required();
  command.add_flag("--verify", options->inspect.verify, "Read everything and compare the checksums");
  command.add_flag("--json", options->inspect.json, "One JSON object instead of a table");
  command.footer("Example:\n  phalanx inspect out/demo --verify");
  command.callback([options] { run_inspect(*options); });
}

}  // namespace phalanx
