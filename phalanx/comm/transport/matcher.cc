#include "phalanx/comm/transport/matcher.h"

#include <algorithm>
#include <cstring>

#include "phalanx/comm/failure.h"

namespace phalanx {
namespace {

Tensor bytes_of(size_t n) { return Tensor::empty({static_cast<int64_t>(n)}, DType::u8); }

bool same_call(const MessageHeader& header, const Fingerprint& f) {
  return header.packed == f.packed() && header.numel == f.numel;
}

}  // namespace

void Matcher::post(Exchange& exchange) {
  for (size_t from = 0; from < peers_.size(); ++from) {
    for (const Early& e : peers_[from].early) {
      if (e.header.tag.group != exchange.tag.group || e.header.tag.sequence != exchange.tag.sequence)
        continue;
      refuse_another_call(static_cast<int>(from), e.header, exchange.fingerprint);
    }
  }
  for (Exchange::Part& part : exchange.parts) {
    if (part.message.kind == P2P::Kind::recv) take_early(part.message.peer, {&exchange, &part});
  }
}

// The first early message of that tag that nobody has claimed, else the receive waits.
void Matcher::take_early(int from, Wanted wanted) {
  Peer& peer = peers_[static_cast<size_t>(from)];
  const auto found = std::ranges::find_if(
      peer.early, [&](const Early& e) { return e.header.tag == wanted.exchange->tag && !e.wanted; });
  if (found == peer.early.end()) {
    peer.wanted.push_back(wanted);
    return;
  }
  if (peer.early_arrives && &*found == &peer.early.back()) {
    found->wanted = wanted;
    return;
  }
  if (fits(from, found->header, wanted)) {
    if (found->header.bytes > 0) {
      std::memcpy(wanted.part->message.buffer.raw(), found->bytes.raw(), found->header.bytes);
    }
    wanted.part->done = true;
  }
  peer.early.erase(found);
}

void Matcher::abandon(const Exchange& exchange) noexcept {
  if (misfit_ == &exchange) misfit_ = nullptr;
  for (Peer& peer : peers_) {
    std::erase_if(peer.wanted, [&](const Wanted& w) { return w.exchange == &exchange; });
    if (peer.direct && peer.direct->exchange == &exchange) peer.direct.reset();
    for (Early& e : peer.early) {
      if (e.wanted && e.wanted->exchange == &exchange) e.wanted.reset();
    }
  }
}

void Matcher::check(const Exchange& exchange) const {
  if (misfit_ == &exchange) throw CommError(misfit_text_);
}

void Matcher::refuse_another_call(int from, const MessageHeader& header, const Fingerprint& mine) const {
  if (same_call(header, mine)) return;
  const Fingerprint theirs = Fingerprint::unpacked(header.packed, header.numel);
  throw CommError(format("calls differ: operation #{} of group {} is {} on rank {} and {} on rank {}",
                         header.tag.sequence, recorder_.group_name(header.tag.group), theirs.text(), from,
                         mine.text(), rank_));
}

bool Matcher::fits(int from, const MessageHeader& header, const Wanted& wanted) {
  const Fingerprint& expected = wanted.exchange->fingerprint;
  const size_t bytes = wanted.part->message.buffer.bytes();
  if (same_call(header, expected) && header.bytes == bytes) return true;
  if (!misfit_) {
    misfit_ = wanted.exchange;
    misfit_text_ = mismatch_text(from, Fingerprint::unpacked(header.packed, header.numel), header.bytes,
                                 rank_, expected, bytes);
  }
  return false;
}

Tensor Matcher::begin(int from, const MessageHeader& header) {
  Peer& peer = peers_[static_cast<size_t>(from)];
  PHX_CHECK(!peer.arriving, "two messages of rank {} at once", from);
  const auto found =
      std::ranges::find_if(peer.wanted, [&](const Wanted& w) { return w.exchange->tag == header.tag; });
  if (found == peer.wanted.end()) {
    if (recorder_.reached(header.tag.group, header.tag.sequence)) {
      const auto mine = recorder_.find(header.tag.group, header.tag.sequence);
      if (mine) refuse_another_call(from, header, mine->fingerprint);
    }
    peer.arriving = true;
    peer.early_arrives = true;
    return peer.early.emplace_back(Early{header, bytes_of(header.bytes), {}}).bytes;
  }
  peer.arriving = true;
  const Wanted wanted = *found;
  peer.wanted.erase(found);
  if (!fits(from, header, wanted)) return bytes_of(header.bytes);  // read, and forgotten
  peer.direct = wanted;
  return wanted.part->message.buffer;
}

void Matcher::end(int from) {
  Peer& peer = peers_[static_cast<size_t>(from)];
  peer.arriving = false;
  if (peer.direct) peer.direct->part->done = true;
  peer.direct.reset();
  if (!std::exchange(peer.early_arrives, false)) return;
  const std::optional<Wanted> wanted = std::exchange(peer.early.back().wanted, std::nullopt);
  if (wanted) take_early(from, *wanted);
}

}  // namespace phalanx
