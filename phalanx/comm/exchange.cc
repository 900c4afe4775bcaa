#include "phalanx/comm/exchange.h"

#include "phalanx/comm/transport/transport.h"

namespace phalanx {

void CommWaitable::wait() { PHX_CHECK(false, "a step of an operation is waited for outside its engine"); }

Exchange::Exchange(Transport& transport, PooledVector<P2P> messages, const Tag& tag_,
                   const Fingerprint& fingerprint_)
    : tag(tag_), fingerprint(fingerprint_), transport_(transport) {
  parts.reserve(messages.size());
  for (P2P& m : messages) parts.push_back({.message = std::move(m)});
  transport_.post(*this);
}

Exchange::~Exchange() {
  for (const Part& part : parts) {
    if (!part.done) {
      transport_.abandon(*this);
      return;
    }
  }
}

bool Exchange::poll() { return transport_.poll(*this); }

PooledVector<int> Exchange::missing() const {
  PooledVector<int> ranks;
  for (const Part& part : parts) {
    if (!part.done) ranks.push_back(part.message.peer);
  }
  return ranks;
}

std::string mismatch_text(int sender, const Fingerprint& sent, size_t sent_bytes, int receiver,
                          const Fingerprint& expected, size_t expected_bytes) {
  return format("calls differ: rank {} is in {} and sends {} bytes, rank {} is in {} and expects {}", sender,
                sent.text(), sent_bytes, receiver, expected.text(), expected_bytes);
}

}  // namespace phalanx
