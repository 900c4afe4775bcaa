#include "phalanx/comm/call.h"

namespace phalanx {

std::string Call::text() const {
  return format("{} #{} of group {}", fingerprint_.text(), sequence_, group_->name);
}

Exchange Call::exchange(PooledVector<P2P> messages) {
  int64_t sent = 0;
  int64_t received = 0;
  for (P2P& m : messages) {
    (m.kind == P2P::Kind::send ? sent : received) += static_cast<int64_t>(m.buffer.bytes());
    m.peer = group_->members[static_cast<size_t>(m.peer)];
  }
  count(sent, received);
  const Tag tag{.group = group_->id, .sequence = sequence_, .step = step_++};
  return Exchange(*transport_, std::move(messages), tag, fingerprint_);
}

void Call::count(int64_t sent, int64_t received) const {
  group_->traffic[static_cast<size_t>(fingerprint_.kind)] += {.sent = sent, .received = received};
}

}  // namespace phalanx
