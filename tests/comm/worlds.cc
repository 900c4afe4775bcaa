#include "tests/comm/worlds.h"

namespace phalanx {
namespace {

Reports collect(const ThreadWorldOptions& options, const WrapTransport& wrap, const RankBody& body) {
  Reports reports;
  reports.of_rank.resize(static_cast<size_t>(options.ranks));
  try {
    run_thread_ranks(options, wrap, [&](Group& world) {
      try {
        body(world);
      } catch (const std::exception& e) {
        reports.of_rank[static_cast<size_t>(world.rank())] = e.what();
        throw;
      }
    });
  } catch (const std::exception& e) {
    reports.of_world = e.what();
  } catch (...) {
    reports.of_world = "an exception of unknown type";
  }
  return reports;
}

}  // namespace

WrapTransport faked(const FakePlan& plan) {
  return [plan](std::unique_ptr<Transport> inner) { return fake_transport(std::move(inner), plan); };
}

Reports reports_of(const ThreadWorldOptions& options, const RankBody& body) {
  return collect(
      options, [](std::unique_ptr<Transport> t) { return t; }, body);
}

Reports reports_of(const ThreadWorldOptions& options, const FakePlan& plan, const RankBody& body) {
  return collect(options, faked(plan), body);
}

Reports reports_of_processes(const ProcessWorldOptions& options, const RankBody& body) {
  Reports reports;
  for (const ProcessEnd& end : process_ranks_end(options, body)) {
    reports.of_rank.push_back(end.status != 0 && end.report.empty() ? format("status {}", end.status)
                                                                    : end.report);
    if (end.first || reports.of_world.empty()) reports.of_world = end.report;
  }
  return reports;
}

}  // namespace phalanx
