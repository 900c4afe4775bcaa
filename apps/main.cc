// The `phalanx` command.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <new>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/usage.h"
#include "phalanx/base/error.h"

namespace {

constexpr const char* kFooter =
    "Every command has --help with an example. Ranks are threads unless a launcher (mpirun, srun) started "
    "several processes.";

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Phalanx: train and serve large language models in parallel", "phalanx"};
  app.footer(kFooter);
  app.require_subcommand(1);
  app.set_version_flag("--version", "phalanx 0.1.0");
  phalanx::add_train(app);
  phalanx::add_generate(app);
  phalanx::add_verify(app);
  phalanx::add_export(app);
  phalanx::add_inspect(app);
  phalanx::add_bench(app);
  phalanx::add_schedule(app);
  phalanx::add_place(app);
  try {
    app.parse(argc, argv);
    phalanx::finish_output();
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help and --version
    std::fprintf(stderr, "%s\n", phalanx::usage_mistake(app, e, argc > 1 ? argv[1] : "").c_str());
    return 1;
  } catch (const phalanx::Error& e) {
    std::fprintf(stderr, "phalanx: %s\n", e.what());
    return 1;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "phalanx: out of memory: take a smaller model, train.microbatch or model.context\n");
    return 1;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "phalanx: internal error, please report it: %s\n", e.what());
    return 2;
  }
  return 0;
}
