// Starting the ranks of a world as children of this process.
#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "phalanx/comm/transport/process.h"

namespace phalanx {
namespace {

// Holds SIGINT and SIGTERM back while it lives; they come afterwards.
class SignalsHeld {
 public:
  SignalsHeld() {
    sigemptyset(&held_);
    sigaddset(&held_, SIGINT);
    sigaddset(&held_, SIGTERM);
    sigprocmask(SIG_BLOCK, &held_, &before_);
  }
  ~SignalsHeld() {
    sigprocmask(SIG_SETMASK, &before_, nullptr);
    if (got_ != 0) raise(got_);
  }
  SignalsHeld(const SignalsHeld&) = delete;
  SignalsHeld& operator=(const SignalsHeld&) = delete;

  // A signal that came within `limit`, or 0.
  int wait(std::chrono::milliseconds limit) {
    const timespec t{.tv_sec = 0, .tv_nsec = limit.count() * 1'000'000};
    const int signal = sigtimedwait(&held_, nullptr, &t);
    if (signal <= 0) return 0;
    got_ = signal;
    return signal;
  }
  const sigset_t& before() const { return before_; }

 private:
  sigset_t held_{};
  sigset_t before_{};
  int got_ = 0;
};

// A rank's process, as its parent sees it.
struct Child {
  pid_t pid = -1;
  int reports = -1;  // the reading end of a pipe
  bool ended = false;
  ProcessEnd end;
};

constexpr size_t kReportBytes = 16 << 10;  // fits into a pipe that nobody reads yet

// One byte that says whether the failure was this rank's own, then what it threw.
void write_report(int pipe, bool own, const std::string& text) {
  const std::string all = (own ? "1" : "0") + text.substr(0, kReportBytes);
  for (size_t done = 0; done < all.size();) {
    const ssize_t n = write(pipe, all.data() + done, all.size() - done);
    if (n <= 0) return;
    done += static_cast<size_t>(n);
  }
}

[[noreturn]] void be_rank(const ProcessPlace& place, int reports, const RankBody& body) {
  int status = 0;
  try {
    join_process_ranks(place, body);
  } catch (const CommError& e) {
    write_report(reports, false, e.what());
    status = 1;
  } catch (const std::exception& e) {
    write_report(reports, true, e.what());
    status = 1;
  } catch (...) {
    write_report(reports, true, "an exception of unknown type");
    status = 1;
  }
  std::fflush(nullptr);
  // lint-allow(exit): the child of a fork has no caller; what the parent set up is the parent's to take down
  _exit(status);
}

Child fork_rank(const ProcessPlace& place, const sigset_t& signals, const RankBody& body) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw Error("cannot make a pipe: {}", std::strerror(errno));
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) throw Error("cannot start rank {} of {}: {}", place.rank, place.ranks, std::strerror(errno));
  if (pid > 0) {
    close(ends[1]);
    return {.pid = pid, .reports = ends[0], .end = {}};
  }
  close(ends[0]);
  setpgid(0, 0);  // a Ctrl-C at the terminal reaches the parent alone, which passes it on once
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) raise(SIGKILL);  // it died before the line above
  sigprocmask(SIG_SETMASK, &signals, nullptr);
  be_rank(place, ends[1], body);
}

// Takes the report of a child that has ended.
void collect(Child& child, int status) {
  child.ended = true;
  child.end.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  std::string text;
  char buffer[4096];
  for (ssize_t n = 0; (n = read(child.reports, buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<size_t>(n));
  }
  close(child.reports);
  if (text.empty()) return;
  child.end.first = text.front() == '1';
  child.end.report = text.substr(1);
}

bool one_failed(const std::vector<Child>& children) {
  return std::ranges::any_of(children, [](const Child& c) { return c.ended && c.end.status != 0; });
}

void send_to_running(const std::vector<Child>& children, int signal) {
  for (const Child& c : children) {
    if (!c.ended) kill(c.pid, signal);
  }
}

// True while one still runs.
bool reap(std::vector<Child>& children) {
  bool running = false;
  for (Child& c : children) {
    if (c.ended) continue;
    int status = 0;
    if (waitpid(c.pid, &status, WNOHANG) == c.pid) {
      collect(c, status);
    } else {
      running = true;
    }
  }
  return running;
}

}  // namespace

std::vector<ProcessEnd> process_ranks_end(const ProcessWorldOptions& options, const RankBody& body) {
  PHX_CHECK(options.ranks > 0, "a world of {} ranks", options.ranks);
  std::fflush(nullptr);  // or the children would print it again
  const auto [listener, port] = listen_at("127.0.0.1", 0);
  const std::string key = format("{} of {}", port, getpid());
  std::vector<Child> children;
  SignalsHeld signals;
  for (int r = 0; r < options.ranks; ++r) {
    children.push_back(fork_rank({.rank = r,
                                  .ranks = options.ranks,
                                  .port = port,
                                  .key = key,
                                  .threads_per_rank = options.threads_per_rank,
                                  .deadlines = options.deadlines,
                                  .wrap = options.wrap},
                                 signals.before(), body));
  }
  const Hub hub(
      {.listener = listener, .ranks = options.ranks, .key = key, .liveness = options.deadlines.liveness});
  auto last_good = std::chrono::steady_clock::now();
  while (reap(children)) {
    const int signal = signals.wait(std::chrono::milliseconds(10));
    if (signal != 0) send_to_running(children, signal);
    const auto now = std::chrono::steady_clock::now();
    if (!one_failed(children)) last_good = now;
    if (now - last_good > options.deadlines.liveness) send_to_running(children, SIGKILL);  // it had its time
  }
  std::vector<ProcessEnd> ends;
  for (Child& c : children) ends.push_back(std::move(c.end));
  return ends;
}

void run_process_ranks(const ProcessWorldOptions& options, const RankBody& body) {
  const std::vector<ProcessEnd> ends = process_ranks_end(options, body);
  const ProcessEnd* worst = nullptr;
  for (const ProcessEnd& e : ends) {
    if (e.status == 0 || (worst && !(e.first && !worst->first) && !worst->report.empty())) continue;
    worst = &e;
  }
  if (!worst) return;
  if (!worst->report.empty()) throw Error("{}", worst->report);
  throw Error("a rank's process ended with status {} and said nothing", worst->status);
}

}  // namespace phalanx
