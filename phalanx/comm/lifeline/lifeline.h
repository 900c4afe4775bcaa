// A rank's connection to the hub of its world: meeting the others, hearing that one has died or failed, and
// seeing the pages of ranks whose memory is not shared.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "phalanx/comm/lifeline/frame_socket.h"

namespace phalanx {

struct LifelineOptions {
  int rank = 0;
  int ranks = 1;
  std::vector<std::string> addresses = {"127.0.0.1"};  ///< of the hub
  int port = 0;
  std::string key = {};
  std::chrono::milliseconds meeting = std::chrono::minutes(2);
  std::chrono::milliseconds liveness = std::chrono::seconds(10);
};

/// What the lifeline's thread tells; called on that thread, never two at a time.
struct LifelineEvents {
  /// The world has failed because of `rank`; once.
  std::function<void(int rank, const std::string& why)> on_failure;
  /// This rank's page, for one that asks.
  std::function<std::string()> page;
};

/// Sends a sign of life from a thread of its own, so that a rank that computes is not taken for dead and one
/// that is stopped or killed is.
class Lifeline {
 public:
  /// Connects. Error: no hub answers in time.
  explicit Lifeline(LifelineOptions options);
  /// Never waits for others. Without leave(), the others take this rank for dead.
  ~Lifeline();
  Lifeline(const Lifeline&) = delete;
  Lifeline& operator=(const Lifeline&) = delete;

  /// Every rank gives a text; gives all of them, by rank. Collective, before start(). Error: a rank has not
  /// come or died before.
  std::vector<std::string> share(const std::string& text);
  /// From now on events are told. Once.
  void start(LifelineEvents events);
  /// Tells all that the world has failed because of this rank.
  void fail(const std::string& why);
  /// Asks every rank for its page; they come one by one into pages().
  void ask_for_pages();
  /// The pages that have come since the last call, by rank.
  std::map<int, std::string> take_pages();
  /// Says good-bye: from now on this rank may end.
  void leave();
  /// After leave(): returns true when all ranks have left, false when the world has failed.
  bool wait_for_the_others();

 private:
  using Clock = std::chrono::steady_clock;

  void send(Frame frame);
  void serve();
  void handle(Frame frame);
  void failed(int rank, const std::string& why);
  void end();
  void wait_a_moment(std::chrono::milliseconds limit);

  LifelineOptions options_;
  LifelineEvents events_;
  std::mutex mutex_;  // of the members below, but for what only the thread uses
  FrameSocket socket_;
  std::map<int, std::string> pages_;
  bool left_ = false;
  bool all_left_ = false;
  bool ended_ = false;                      // the thread has, or the world has failed
  std::condition_variable changed_;         // all_left_ or ended_
  Clock::time_point heard_ = Clock::now();  // the thread's
  bool failed_ = false;                     // the thread's
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

/// "pid 4711 on host green": how messages call this process.
std::string process_name();

}  // namespace phalanx
