// Spans of time by rank, for a timeline. Off unless a TraceScope is there: a span then costs one branch.
#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace phalanx {

/// Which row of a rank's timeline a span belongs to. Spans of one row nest or follow each other; operations
/// in flight overlap with both, so they have their own.
enum class TraceRow : uint8_t { compute, comm };

/// What a span's time is spent on, and so what its `detail` counts: operations (a multiply-add is two) of
/// products and attention; bytes of all other kinds: what must be read and written, each once.
enum class TraceKind : uint8_t { other, product, attention, elementwise, optimizer, communication };
inline constexpr int kTraceKinds = 6;

/// One thing that a rank did.
struct Span {
  const char* name = "";  ///< a literal
  int64_t begin_ns = 0;   ///< steady clock
  int64_t end_ns = 0;
  int64_t detail = 0;  ///< one number worth seeing: bytes, rows, a microbatch
  TraceRow row = TraceRow::compute;
  TraceKind kind = TraceKind::other;
};

/// The last spans of one rank. Written by that rank's thread; read when it has stopped writing.
class TraceRing {
 public:
  explicit TraceRing(size_t capacity = 1 << 16) : spans_(capacity) {}
  /// Keeps a span in place of the oldest one; allocates nothing.
  void record(const Span& span) { spans_[count_++ % spans_.size()] = span; }
  /// Oldest first.
  std::vector<Span> spans() const;
  /// Spans recorded since the last clear; those beyond the capacity are lost, the oldest first.
  uint64_t count() const { return count_; }
  void clear() { count_ = 0; }

 private:
  std::vector<Span> spans_;
  uint64_t count_ = 0;
};

/// The calling thread's ring, or null: tracing is off.
TraceRing* trace_ring();

/// Turns tracing on for the calling thread while it lives; `ring` outlives it. A null ring turns it off.
class TraceScope {
 public:
  explicit TraceScope(TraceRing* ring);
  ~TraceScope();
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  TraceRing* previous_;
};

/// Nanoseconds of the steady clock.
int64_t trace_now();

/// Records the time between its construction and destruction, if tracing is on. `name` is a literal.
class TraceSpan {
 public:
  explicit TraceSpan(const char* name, int64_t detail = 0) : TraceSpan(TraceKind::other, name, detail) {}
  /// An op and its work, in the kind's unit.
  template <std::integral N>
  TraceSpan(TraceKind kind, const char* name, N detail)
      : ring_(trace_ring()),
        kind_(kind),
        name_(name),
        detail_(static_cast<int64_t>(detail)),
        begin_(ring_ ? trace_now() : 0) {}
  ~TraceSpan() {
    if (ring_) {
      ring_->record(
          {.name = name_, .begin_ns = begin_, .end_ns = trace_now(), .detail = detail_, .kind = kind_});
    }
  }
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

 private:
  TraceRing* ring_;
  TraceKind kind_;
  const char* name_;
  int64_t detail_;
  int64_t begin_;
};

/// The spans of all ranks (rings[r] is rank r's) in Chrome's trace event format, which Perfetto also opens: a
/// process for each rank, a thread for each row. Times start at the earliest span.
std::string chrome_trace(std::span<const TraceRing* const> rings);

}  // namespace phalanx
