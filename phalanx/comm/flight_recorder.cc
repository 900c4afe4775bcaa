#include "phalanx/comm/flight_recorder.h"

#include <algorithm>
#include <cstring>
#include <ctime>

#include "phalanx/base/check.h"

namespace phalanx {
namespace {

// The writer stores every word with release and the readers load with acquire, so that a reader who finds the
// serial unchanged has read words of that serial only.
void put(std::atomic<uint64_t>& word, uint64_t value) { word.store(value, std::memory_order_release); }
uint64_t get(const std::atomic<uint64_t>& word) { return word.load(std::memory_order_acquire); }

const char* state_name(FlightRecorder::State state) {
  static constexpr std::array kNames = {"issued", "started", "finished", "failed"};
  return kNames[static_cast<size_t>(state) % kNames.size()];
}

double seconds(int64_t ns) { return static_cast<double>(ns) * 1e-9; }

}  // namespace

int64_t coarse_now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
  return static_cast<int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

// One that was never used, else a closed one.
int FlightRecorder::free_slot() const {
  auto free = std::ranges::find_if(groups_, [](const Slot& s) { return get(s.id) == 0; });
  if (free == groups_.end()) free = std::ranges::find_if(groups_, [](const Slot& s) { return !s.open; });
  return free == groups_.end() ? -1 : static_cast<int>(free - groups_.begin());
}

int FlightRecorder::open_group(uint64_t id, std::string_view name) noexcept {
  const int index = free_slot();
  if (index < 0) return index;
  Slot& slot = groups_[static_cast<size_t>(index)];
  put(slot.id, 0);
  std::array<char, kNameBytes> text{};
  std::copy_n(name.begin(), std::min(name.size(), kNameBytes - 1), text.begin());
  for (size_t w = 0; w < slot.name.size(); ++w) {
    uint64_t word = 0;
    std::memcpy(&word, text.data() + w * sizeof word, sizeof word);
    put(slot.name[w], word);
  }
  slot.open = true;
  put(slot.called, 0);
  put(slot.id, id);
  return index;
}

void FlightRecorder::close_group(int slot) noexcept {
  if (slot >= 0) groups_[static_cast<size_t>(slot)].open = false;
}

uint64_t FlightRecorder::issue(int slot, uint64_t group, uint64_t sequence, const Fingerprint& fingerprint,
                               int64_t bytes) noexcept {
  const uint64_t serial = next_.load(std::memory_order_relaxed);
  Words& w = ring_[serial % kEntries];
  put(w[kSerial], 0);
  put(w[kGroup], group);
  put(w[kSequence], sequence);
  put(w[kPacked], fingerprint.packed());
  put(w[kNumel], static_cast<uint64_t>(fingerprint.numel));
  put(w[kState], static_cast<uint64_t>(State::issued));
  put(w[kBytes], static_cast<uint64_t>(bytes));
  put(w[kIssued], static_cast<uint64_t>(coarse_now_ns()));
  put(w[kStarted], 0);
  put(w[kFinished], 0);
  put(w[kSerial], serial + 1);
  put(next_, serial + 1);
  if (slot >= 0) put(groups_[static_cast<size_t>(slot)].called, sequence + 1);
  return serial;
}

void FlightRecorder::advance(uint64_t serial, State state) noexcept {
  Words& w = ring_[serial % kEntries];
  if (get(w[kSerial]) != serial + 1) return;  // forgotten already
  put(w[state == State::started ? kStarted : kFinished], static_cast<uint64_t>(coarse_now_ns()));
  put(w[kState], static_cast<uint64_t>(state));
}

bool FlightRecorder::reached(uint64_t group, uint64_t sequence) const noexcept {
  return std::ranges::any_of(groups_,
                             [&](const Slot& s) { return get(s.id) == group && get(s.called) > sequence; });
}

std::optional<FlightRecorder::Entry> FlightRecorder::read(uint64_t serial) const {
  const Words& w = ring_[serial % kEntries];
  if (get(w[kSerial]) != serial + 1) return std::nullopt;
  const Entry e{.serial = serial,
                .group = get(w[kGroup]),
                .sequence = get(w[kSequence]),
                .fingerprint = Fingerprint::unpacked(get(w[kPacked]), static_cast<int64_t>(get(w[kNumel]))),
                .state = static_cast<State>(get(w[kState])),
                .bytes = static_cast<int64_t>(get(w[kBytes])),
                .issued_ns = static_cast<int64_t>(get(w[kIssued])),
                .started_ns = static_cast<int64_t>(get(w[kStarted])),
                .finished_ns = static_cast<int64_t>(get(w[kFinished]))};
  if (get(w[kSerial]) != serial + 1) return std::nullopt;
  return e;
}

std::optional<FlightRecorder::Entry> FlightRecorder::find(uint64_t group, uint64_t sequence) const {
  const uint64_t end = get(next_);
  for (uint64_t serial = end; serial > 0 && serial + kEntries > end; --serial) {
    const auto e = read(serial - 1);
    if (e && e->group == group && e->sequence == sequence) return e;
  }
  return std::nullopt;
}

std::vector<FlightRecorder::Entry> FlightRecorder::recent(size_t n) const {
  const uint64_t end = get(next_);
  std::vector<Entry> out;
  for (uint64_t serial = end - std::min<uint64_t>({end, n, kEntries}); serial < end; ++serial) {
    if (const auto e = read(serial)) out.push_back(*e);
  }
  return out;
}

std::string FlightRecorder::group_name(uint64_t id) const {
  for (const Slot& slot : groups_) {
    if (get(slot.id) != id) continue;
    std::array<char, kNameBytes + 1> text{};
    for (size_t w = 0; w < slot.name.size(); ++w) {
      const uint64_t word = get(slot.name[w]);
      std::memcpy(text.data() + w * sizeof word, &word, sizeof word);
    }
    return text.data();
  }
  return format("{:x}", id);
}

std::vector<uint64_t> FlightRecorder::snapshot() const {
  std::vector<uint64_t> out = {static_cast<uint64_t>(coarse_now_ns()), get(next_), waiting() ? 1u : 0u};
  for (const Words& w : ring_) {
    const size_t begin = out.size();
    for (const std::atomic<uint64_t>& word : w) out.push_back(get(word));
    if (get(w[kSerial]) != out[begin]) out[begin] = 0;  // it changed meanwhile
  }
  for (const Slot& s : groups_) {
    out.push_back(get(s.id));
    out.push_back(get(s.called));
    for (const std::atomic<uint64_t>& word : s.name) out.push_back(get(word));
  }
  return out;
}

void FlightRecorder::restore(std::span<const uint64_t> words) {
  size_t at = 0;
  const auto next = [&] {
    PHX_CHECK(at < words.size(), "a flight recorder of {} words", words.size());
    return words[at++];
  };
  const uint64_t shift = static_cast<uint64_t>(coarse_now_ns()) - next();
  put(next_, next());
  set_waiting(next() != 0);
  for (Words& w : ring_) {
    for (std::atomic<uint64_t>& word : w) put(word, next());
    for (const Word time : {kIssued, kStarted, kFinished}) {
      if (get(w[time]) != 0) put(w[time], get(w[time]) + shift);
    }
  }
  for (Slot& s : groups_) {
    put(s.id, next());
    put(s.called, next());
    for (std::atomic<uint64_t>& word : s.name) put(word, next());
  }
}

std::string FlightRecorder::last_text() const {
  const std::vector<Entry> last = recent(1);
  if (last.empty()) return "";
  const Entry& e = last.back();
  const int64_t since = e.finished_ns != 0 ? e.finished_ns : e.issued_ns;
  return format("{} {} #{} of group {}, {:.1f} s ago", state_name(e.state), e.fingerprint.text(), e.sequence,
                group_name(e.group), seconds(coarse_now_ns() - since));
}

std::string FlightRecorder::text(size_t n) const {
  const int64_t now = coarse_now_ns();
  std::string out;
  for (const Entry& e : recent(n)) {
    out += format("{:9.3f} s ago  {:8} {} #{} of group {}, {} bytes", seconds(now - e.issued_ns),
                  state_name(e.state), e.fingerprint.text(), e.sequence, group_name(e.group), e.bytes);
    if (e.finished_ns != 0) out += format(", took {:.3f} s", seconds(e.finished_ns - e.issued_ns));
    out += "\n";
  }
  return out;
}

std::string FlightRecorder::json(size_t n) const {
  std::string out = "[";
  for (const Entry& e : recent(n)) {
    out += format(
        "{}{{\"serial\": {}, \"group\": \"{}\", \"sequence\": {}, \"op\": \"{}\", \"state\": \"{}\", "
        "\"bytes\": {}, \"issued_ns\": {}, \"started_ns\": {}, \"finished_ns\": {}}}",
        out.size() == 1 ? "" : ",\n ", e.serial, group_name(e.group), e.sequence, e.fingerprint.text(),
        state_name(e.state), e.bytes, e.issued_ns, e.started_ns, e.finished_ns);
  }
  return out + "]\n";
}

}  // namespace phalanx
