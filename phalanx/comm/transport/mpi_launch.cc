// How the ranks of a process that mpirun has started live.
#include <algorithm>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "phalanx/base/parallel_for.h"
#include "phalanx/comm/lifeline/hub.h"
#include "phalanx/comm/transport/mpi.h"
#include "phalanx/comm/transport/mpi_library.h"
#include "phalanx/comm/transport/mpi_transport.h"

namespace phalanx {
namespace {

// Process 0's hub and everybody's connection to it.
struct Meeting {
  std::unique_ptr<Hub> hub;  // process 0's
  LifelineOptions lifeline;  // of any rank
};

Meeting arrange_meeting(MpiLibrary& mpi, const MpiOptions& options) {
  Meeting m;
  m.lifeline = {.ranks = mpi.ranks(), .meeting = options.meeting, .liveness = options.deadlines.liveness};
  std::vector<std::string> said;
  if (mpi.process() == 0) {
    const auto [listener, port] = listen_at("", 0);
    const std::string key = format("{} {}", process_name(), port);
    m.hub = std::make_unique<Hub>(HubOptions{.listener = listener,
                                             .ranks = mpi.ranks(),
                                             .key = key,
                                             .meeting = options.meeting,
                                             .liveness = options.deadlines.liveness});
    said = own_addresses();
    said.push_back(format("{}", port));
    said.push_back(key);
  }
  said = unpack_texts(mpi.from_process_0(pack_texts(said)));
  m.lifeline.key = said.back();
  said.pop_back();
  m.lifeline.port = std::stoi(said.back());
  said.pop_back();
  m.lifeline.addresses = said;
  return m;
}

// How one rank of this process ended.
struct RankEnd {
  std::exception_ptr error;
  bool is_others = false;  // the error is another rank's
  bool all_left = false;
};

RankEnd be_rank(MpiLibrary& mpi, int rank, LifelineOptions options, const MpiOptions& how,
                const RankBody& body) {
  RankEnd end;
  MpiSurroundings around(rank, mpi.ranks());
  RankPage& own = around.pages[static_cast<size_t>(rank)];
  around.seen[static_cast<size_t>(rank)] = true;
  options.rank = rank;
  Lifeline lifeline(options);
  around.memory.meet(lifeline, "");
  lifeline.start({.on_failure = [&](int other, const std::string& why) { around.failures.fail(other, why); },
                  .page = [&own] { return own.snapshot(); }});
  std::unique_ptr<Transport> transport = mpi_transport(mpi, rank, around, lifeline);
  if (how.wrap) transport = how.wrap(std::move(transport));
  end.error = run_rank(*transport, how.deadlines, body);
  const std::optional<Failure> first = around.failures.first();
  end.is_others = first && first->rank != rank;
  lifeline.leave();
  end.all_left = lifeline.wait_for_the_others();
  return end;
}

}  // namespace

void run_mpi_ranks(const MpiOptions& options, const RankBody& body) {
  PHX_CHECK(options.ranks_per_process >= 1, "{} ranks of a process", options.ranks_per_process);
  MpiLibrary mpi(options.ranks_per_process);
  const int cores = available_cores();
  const int threads =
      options.threads_per_rank > 0 ? options.threads_per_rank : std::max(1, cores / mpi.ranks_on_host());
  const Meeting meeting = arrange_meeting(mpi, options);
  std::vector<RankEnd> ends(static_cast<size_t>(mpi.per_process()));
  const auto be = [&](int i) {
    RankEnd& end = ends[static_cast<size_t>(i)];
    const ThreadScope scope(threads);
    try {
      end = be_rank(mpi, mpi.process() * mpi.per_process() + i, meeting.lifeline, options, body);
    } catch (...) {
      end.error = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < mpi.per_process(); ++i) others.emplace_back(be, i);
  be(0);
  for (std::thread& t : others) t.join();
  if (meeting.hub) meeting.hub->finish();
  const auto failed = [](const RankEnd& end) { return end.error != nullptr; };
  auto first = std::ranges::find_if(ends, [&](const RankEnd& end) { return failed(end) && !end.is_others; });
  if (first == ends.end()) first = std::ranges::find_if(ends, failed);
  if (first != ends.end()) std::rethrow_exception(first->error);
  if (std::ranges::all_of(ends, &RankEnd::all_left)) mpi.end();
}

}  // namespace phalanx
