// What a rank did last: a ring of its operations, readable by every rank that shares its memory, also after
// it has died.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "phalanx/comm/fingerprint.h"

namespace phalanx {

/// Written by one rank, without locks or allocation; read by any. Plain memory, so that processes can share
/// it.
class FlightRecorder {
 public:
  static constexpr size_t kEntries = 256;  ///< operations that are remembered
  static constexpr size_t kGroups = 128;   ///< groups whose last operation is remembered
  static constexpr size_t kNameBytes = 32;

  /// How far an operation came: called; something happened in it; done; or it threw.
  enum class State : uint8_t { issued, started, finished, failed };

  /// One operation.
  struct Entry {
    uint64_t serial = 0;  ///< counts the rank's operations
    uint64_t group = 0;   ///< GroupInfo::id
    uint64_t sequence = 0;
    Fingerprint fingerprint;
    State state = State::issued;
    int64_t bytes = 0;      ///< of this rank's tensor
    int64_t issued_ns = 0;  ///< coarse steady clock, a few milliseconds fine
    int64_t started_ns = 0;
    int64_t finished_ns = 0;
  };

  /// Makes a group known; gives its slot, or −1 when there are too many. A closed group stays known until its
  /// slot is needed.
  int open_group(uint64_t id, std::string_view name) noexcept;
  void close_group(int slot) noexcept;

  /// A new operation; gives its serial number.
  uint64_t issue(int slot, uint64_t group, uint64_t sequence, const Fingerprint& fingerprint,
                 int64_t bytes) noexcept;
  /// It came as far as `state`.
  void advance(uint64_t serial, State state) noexcept;

  /// Whether the rank stands still until an operation moves.
  void set_waiting(bool waiting) noexcept { waiting_.store(waiting, std::memory_order_relaxed); }
  bool waiting() const noexcept { return waiting_.load(std::memory_order_relaxed); }

  /// The rank has called operation `sequence` of that group; false also when the group is not known.
  bool reached(uint64_t group, uint64_t sequence) const noexcept;
  /// That operation, if it is still remembered.
  std::optional<Entry> find(uint64_t group, uint64_t sequence) const;
  /// The last `n` operations, oldest first.
  std::vector<Entry> recent(size_t n = kEntries) const;
  /// The name of a group that is known, else its number.
  std::string group_name(uint64_t id) const;

  /// All that is remembered as words, taken while the writer goes on; and back, into a recorder that nobody
  /// writes, with the other machine's clock set to this one's.
  std::vector<uint64_t> snapshot() const;
  void restore(std::span<const uint64_t> words);

  /// One line: "finished all_reduce(f32[8], sum) #41 of group dp, 1.3 s ago"; "" before the first operation.
  std::string last_text() const;
  /// A line for each of the last `n` operations, oldest first.
  std::string text(size_t n = kEntries) const;
  /// The last `n` operations as a JSON array of objects.
  std::string json(size_t n = kEntries) const;

 private:
  // Words of an entry. kSerial is 0 while the others change, else the serial number plus one.
  enum Word {
    kSerial,
    kGroup,
    kSequence,
    kPacked,
    kNumel,
    kState,
    kBytes,
    kIssued,
    kStarted,
    kFinished,
    kWords
  };
  using Words = std::array<std::atomic<uint64_t>, kWords>;
  struct Slot {
    std::atomic<uint64_t> id{0};
    std::atomic<uint64_t> called{0};  // sequence of the last operation, plus one
    bool open = false;                // the writer's
    std::array<std::atomic<uint64_t>, kNameBytes / 8> name{};
  };

  std::optional<Entry> read(uint64_t serial) const;
  int free_slot() const;

  std::atomic<uint64_t> next_{0};
  std::atomic<bool> waiting_{false};
  std::array<Words, kEntries> ring_{};
  std::array<Slot, kGroups> groups_{};
};

/// Nanoseconds of a steady clock that is cheap to read and a few milliseconds coarse; the same one for all
/// processes of a machine.
int64_t coarse_now_ns();

}  // namespace phalanx
