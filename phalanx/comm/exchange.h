// Batches of messages between ranks: what every transport must be able to do.
#pragma once

#include <cstdint>
#include <string>

#include "phalanx/base/pooled.h"
#include "phalanx/base/task.h"
#include "phalanx/comm/fingerprint.h"
#include "phalanx/tensor/tensor.h"

namespace phalanx {

class Transport;

/// What an operation waits for inside; whoever waits for the operation polls it.
class CommWaitable : public Waitable {
 public:
  /// Never called: operations are driven by their engine.
  void wait() final;
  /// The ranks of the world from whom something is missing, for messages.
  virtual PooledVector<int> missing() const = 0;

 protected:
  ~CommWaitable() = default;
};

/// One half of a message: this rank sends `buffer` to `peer`, or receives it from there. The peer is a rank
/// of the group in a group's calls and a rank of the world in a transport's.
struct P2P {
  enum class Kind : uint8_t { send, recv };
  Kind kind;
  int peer;
  Tensor buffer;
};
inline P2P send_to(int peer, Tensor buffer) { return {P2P::Kind::send, peer, std::move(buffer)}; }
inline P2P recv_from(int peer, Tensor buffer) { return {P2P::Kind::recv, peer, std::move(buffer)}; }

/// Messages match by sender and tag, and then in order.
struct Tag {
  uint64_t group = 0;
  uint64_t sequence = 0;  ///< of the operation in its group
  uint64_t step = 0;      ///< of the exchange in the operation
  friend bool operator==(const Tag&, const Tag&) = default;
};

/// A batch of messages in flight.
class Exchange final : public CommWaitable {
 public:
  /// Posts the messages; peers are ranks of the world.
  Exchange(Transport& transport, PooledVector<P2P> messages, const Tag& tag, const Fingerprint& fingerprint);
  ~Exchange();
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  bool poll() override;
  PooledVector<int> missing() const override;

  /// One message and how far the transport got with it.
  struct Part {
    P2P message;
    void* state = nullptr;  // the transport's
    bool done = false;
  };
  PooledVector<Part> parts;
  const Tag tag;
  const Fingerprint fingerprint;

 private:
  Transport& transport_;
};

/// The text of a CommError for a message that does not fit its receiver's call.
std::string mismatch_text(int sender, const Fingerprint& sent, size_t sent_bytes, int receiver,
                          const Fingerprint& expected, size_t expected_bytes);

}  // namespace phalanx
