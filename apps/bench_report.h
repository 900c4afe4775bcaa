// What the subcommands of `phalanx bench` share: where their rows go.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "bench/report.h"
#include "phalanx/comm/launch.h"

namespace phalanx {

/// A subcommand of bench with its --json.
CLI::App& add_measurement(CLI::App& bench, const char* name, const char* description, std::string& json);

/// Prints the report, or its JSON if `json` is "-"; another `json` is a file to write too.
void show(const bench::Report& report, const std::string& json);

/// --ranks and --transport.
void add_ranks(CLI::App& command, int& ranks, std::string& transport,
               const std::vector<std::string>& transports = {"threads", "process"});
void add_transport(CLI::App& command, std::string& transport,
                   const std::vector<std::string>& transports = {"threads", "process"});
/// Those ranks, or the ones that a launcher has started, over its transport or nccl; where mpirun has started
/// fewer processes, of which `ranks` is a multiple, they are threads of these.
LaunchOptions ranks_of(int ranks, const std::string& transport, int threads_per_rank);

/// bench ep.
void add_bench_ep(CLI::App& bench);

}  // namespace phalanx
