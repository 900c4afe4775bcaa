// The subcommands of `phalanx`; each adds itself with its options, and runs from a callback.
#pragma once

namespace CLI {
class App;
}

namespace phalanx {

void add_train(CLI::App& app);
void add_generate(CLI::App& app);
void add_verify(CLI::App& app);
void add_export(CLI::App& app);
void add_inspect(CLI::App& app);
void add_bench(CLI::App& app);
void add_schedule(CLI::App& app);
void add_place(CLI::App& app);

}  // namespace phalanx
