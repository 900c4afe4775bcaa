// Where the processes of a world meet, and what notices that one is gone. One hub for a world, in rank 0's
// process or in the one that started the ranks; every rank holds a connection to it (lifeline.h).
#pragma once

#include <atomic>
#include <chrono>
#include <list>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "phalanx/comm/lifeline/frame_socket.h"

namespace phalanx {

struct HubOptions {
  int listener = -1;  ///< of listen_at; the hub takes it over
  int ranks = 0;
  std::string key = {};                                           ///< what a rank of this world says first
  std::chrono::milliseconds meeting = std::chrono::minutes(2);    ///< for all ranks to come
  std::chrono::milliseconds liveness = std::chrono::seconds(10);  ///< of silence: the rank is dead
};

/// Serves on a thread of its own until every rank has left, or shortly after the world has failed.
class Hub {
 public:
  explicit Hub(HubOptions options);
  /// Stops serving; does not wait for ranks.
  ~Hub();
  Hub(const Hub&) = delete;
  Hub& operator=(const Hub&) = delete;

  /// Returns when every rank has left, or the world has failed and the ranks know.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  struct Connection {
    explicit Connection(int fd) : socket(fd), heard(Clock::now()) {}
    FrameSocket socket;
    int rank = -1;  // before its hello
    std::string process;
    Clock::time_point heard;
    bool left = false;
    std::optional<std::string> shared;
  };

  void serve();
  bool over() const;
  void close_with(const Frame& last_word);
  void say_last_word(Connection& connection) const;
  void wait_for_events();
  void accept_all();
  void take_frames(Connection& connection);
  void handle(Connection& connection, Frame frame);
  void welcome(Connection& connection, const std::string& bytes);
  void share_when_all_have();
  void look_for_the_dead();
  void fail(int rank, const std::string& why);
  void send_to_all(const Frame& frame);
  std::vector<int> absent() const;

  HubOptions options_;
  std::list<Connection> connections_;
  Clock::time_point began_ = Clock::now();
  Clock::time_point beat_{};
  bool failed_ = false;
  std::optional<Frame> last_word_;  // when it has been said
  Clock::time_point closing_since_{};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace phalanx
