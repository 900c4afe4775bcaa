// Brings messages that come as a stream from each rank together with the receives that wait for them.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "phalanx/comm/exchange.h"
#include "phalanx/comm/flight_recorder.h"

namespace phalanx {

/// What goes before a message's bytes; plain memory.
struct MessageHeader {
  Tag tag;
  uint64_t packed = 0;  ///< Fingerprint
  int64_t numel = 0;
  uint64_t bytes = 0;

  MessageHeader() = default;
  MessageHeader(const Exchange& exchange, const P2P& message)
      : tag(exchange.tag),
        packed(exchange.fingerprint.packed()),
        numel(exchange.fingerprint.numel),
        bytes(message.buffer.bytes()) {}
};

/// One rank's incoming side, for transports whose messages of one sender come one after the other. Messages
/// match by sender and tag, and then in order; one that comes before its receive is kept. A sender need not
/// wait for its receiver, so a message for which this rank's call has no receive is looked at too: it may
/// belong to another call than this rank's.
class Matcher {
 public:
  /// `recorder` is this rank's, and outlives the matcher.
  Matcher(int rank, int ranks, const FlightRecorder& recorder)
      : rank_(rank), recorder_(recorder), peers_(static_cast<size_t>(ranks)) {}

  /// The exchange's receives wait from now on, or take what has come already. CommError: a message is there
  /// that another call has sent in this one's place.
  void post(Exchange& exchange);
  /// Forgets them.
  void abandon(const Exchange& exchange) noexcept;
  /// CommError if a message came for this exchange that does not fit.
  void check(const Exchange& exchange) const;

  /// A message of `from` begins: gives where its bytes go. CommError: this rank made another call in the
  /// place of the one that sent it.
  Tensor begin(int from, const MessageHeader& header);
  /// All its bytes are there.
  void end(int from);

 private:
  // A receive that waits.
  struct Wanted {
    Exchange* exchange;
    Exchange::Part* part;
  };
  // A message whose receive was not there when it began.
  struct Early {
    MessageHeader header;
    Tensor bytes;
    std::optional<Wanted> wanted;  // came while the message was on its way
  };
  struct Peer {
    std::deque<Wanted> wanted;
    std::deque<Early> early;       // complete, but for the last while `arriving`
    bool arriving = false;         // a message has begun
    bool early_arrives = false;    // and it is the last of `early`
    std::optional<Wanted> direct;  // the receive whose tensor it fills
  };

  bool fits(int from, const MessageHeader& header, const Wanted& wanted);
  void take_early(int from, Wanted wanted);
  void refuse_another_call(int from, const MessageHeader& header, const Fingerprint& mine) const;

  int rank_;
  const FlightRecorder& recorder_;
  std::vector<Peer> peers_;
  const Exchange* misfit_ = nullptr;  // the first exchange that got a message which does not fit
  std::string misfit_text_;
};

}  // namespace phalanx
