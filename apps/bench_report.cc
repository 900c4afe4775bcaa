#include "apps/bench_report.h"

#include "phalanx/base/error.h"

namespace phalanx {

CLI::App& add_measurement(CLI::App& bench, const char* name, const char* description, std::string& json) {
  CLI::App& command = *bench.add_subcommand(name, description);
  command.add_option("--json", json,
                     "Also write the rows as JSON to this file (-: only that, to standard output)");
  return command;
}

void show(const bench::Report& report, const std::string& json) {
  if (json == "-") {
    std::printf("%s", report.json().c_str());
    return;
  }
  std::printf("%s", report.text().c_str());
  if (!json.empty() && !report.write_json(json)) throw Error("{}: cannot write it", json);
}

void add_ranks(CLI::App& command, int& ranks, std::string& transport,
               const std::vector<std::string>& transports) {
  command.add_option("--ranks", ranks, "Ranks")->capture_default_str()->check(CLI::PositiveNumber);
  add_transport(command, transport, transports);
}

void add_transport(CLI::App& command, std::string& transport, const std::vector<std::string>& transports) {
  command.add_option("--transport", transport, "How ranks reach each other")
      ->capture_default_str()
      ->check(CLI::IsMember(transports));
}

LaunchOptions ranks_of(int ranks, const std::string& transport, int threads_per_rank) {
  LaunchOptions launch = {.ranks = ranks, .threads_per_rank = threads_per_rank};
  for (const TransportKind kind : {TransportKind::process, TransportKind::nccl}) {
    if (transport == transport_name(kind)) launch.transport = kind;
  }
  if (const std::optional<Launched> place = launched_by()) {
    if (launch.transport != TransportKind::nccl) launch.transport = place->transport;
    const bool several = launch.transport == TransportKind::mpi && ranks % place->ranks == 0;
    launch.ranks = several ? ranks : place->ranks;
  }
  return launch;
}

}  // namespace phalanx
