// Worlds whose failures a test looks at.
#pragma once

#include <string>
#include <vector>

#include "phalanx/comm/transport/fake.h"
#include "phalanx/comm/transport/process.h"
#include "phalanx/comm/transport/threads.h"

namespace phalanx {

/// What became of a world: what each rank threw ("" if it did not), and what the world threw.
struct Reports {
  std::vector<std::string> of_rank;
  std::string of_world;
};

/// Runs `body` on threads and collects what was thrown.
Reports reports_of(const ThreadWorldOptions& options, const RankBody& body);
/// The same over a fake transport.
Reports reports_of(const ThreadWorldOptions& options, const FakePlan& plan, const RankBody& body);

/// Runs `body` on forked processes; of_world is the report of the rank that failed first.
Reports reports_of_processes(const ProcessWorldOptions& options, const RankBody& body);

/// Wraps each rank's transport as `plan` says.
WrapTransport faked(const FakePlan& plan);

/// A deadline that tests can wait for.
inline constexpr Deadlines kSoon{.progress = std::chrono::milliseconds(400),
                                 .liveness = std::chrono::milliseconds(1500)};

}  // namespace phalanx
