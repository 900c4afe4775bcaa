// One run's expert choices, for other runs to choose alike where only rounding tells the experts apart.
#pragma once

#include <atomic>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "phalanx/model/layer.h"

namespace phalanx {

/// What the routers of a run chose, token by token, where it was close.
class CloseChoices {
 public:
  /// Choices whose margin (ops/route_choice.h) is at least this are not kept.
  explicit CloseChoices(double margin) : margin_(margin) {}
  CloseChoices(const CloseChoices&) = delete;

  void record(const Routed& routed);
  /// Chooses as recorded, where something is recorded; gives the tokens where that was another choice. Any
  /// thread, once all is recorded.
  int64_t replay(const Routed& routed) const;

 private:
  using Token = std::tuple<std::string, uint64_t, int64_t>;  // router, step, number
  double margin_;
  std::map<Token, std::vector<int64_t>> chosen_;
};

/// Records the choices of one rank's run.
class RecordChoices final : public RoutingWatch {
 public:
  explicit RecordChoices(CloseChoices& to) : to_(to) {}
  void routed(const Routed& routed) override { to_.record(routed); }

 private:
  CloseChoices& to_;
};

/// Replays them on any number of ranks, and counts the tokens that would have chosen otherwise.
class ReplayChoices final : public RoutingWatch {
 public:
  explicit ReplayChoices(const CloseChoices& from) : from_(from) {}
  void routed(const Routed& routed) override {
    const int64_t tokens = from_.replay(routed);
    if (!routed.again) tokens_ += tokens;
  }
  int64_t tokens() const { return tokens_; }

 private:
  const CloseChoices& from_;
  std::atomic<int64_t> tokens_ = 0;
};

}  // namespace phalanx
