// A transport that misbehaves on purpose, for tests: over another one it delays messages, lets them overtake
// each other, loses them, and fails. Collectives run by their algorithms over exchange.
#pragma once

#include <chrono>
#include <memory>

#include "phalanx/comm/transport/transport.h"

namespace phalanx {

/// What goes wrong. The same seed gives the same delays on the same rank.
struct FakePlan {
  enum class Fault : uint8_t {
    none,
    error,   ///< an exchange throws
    loss,    ///< an exchange's messages are not sent
    silence  ///< from that exchange on the rank sends and receives nothing
  };

  uint64_t seed = 0;
  /// Each exchange with each peer is held back between 0 and this long, and so overtakes others.
  std::chrono::microseconds max_delay{0};
  Fault fault = Fault::none;
  int fault_rank = 0;          ///< of the world
  int64_t fault_exchange = 0;  ///< which of that rank's exchanges
};

/// `inner` as the plan spoils it.
std::unique_ptr<Transport> fake_transport(std::unique_ptr<Transport> inner, const FakePlan& plan);

}  // namespace phalanx
