// Spans of time by rank, for a timeline. Off unless a TraceScope is there: a span then costs one branch.
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

namespace phalanx {

/// Which row of a rank's timeline a span belongs to. Spans of the first two nest or follow each other;
/// `beside` has those of the second of two tasks that alternate. Operations in flight overlap with all, and
/// so does what a GPU does (tensor/device_trace.h).
enum class TraceRow : uint8_t { compute, beside, comm, device };

/// What a span's time is spent on, and so what its `detail` counts: operations (a multiply-add is two) of
/// products and attention; bytes of all other kinds: what must be read and written, each once. `part` has
/// others within and counts nothing.
enum class TraceKind : uint8_t { other, product, attention, elementwise, optimizer, communication, part };
inline constexpr int kTraceKinds = 6;  // less `part`

/// Where in a training step a span lies; one that does not say lies where the span around it does.
enum class TracePhase : uint8_t {
  none,
  forward,
  backward,
  weights,  ///< weight gradients
  again,    ///< a forward that is run again for its backward
  overlap,  ///< a forward and a backward in turns
  reduce,   ///< gradients summed over ranks
  gather,   ///< weights from the ranks that have shares of them
  update,   ///< the optimizer
  wait,     ///< for other ranks
};
/// "weight gradient"; "" of none.
const char* phase_name(TracePhase phase);

/// What a span is part of. Texts are literals, or kept by the ring.
struct TraceLabel {
  const char* unit = "";  ///< of the model: "layers.3"
  const char* part = "";  ///< of the unit: "attention"
  TracePhase phase = TracePhase::none;
  int microbatch = -1;  ///< −1: of none
};

/// One thing that a rank did.
struct Span {
  const char* name = "";  ///< a literal; "" of a part that its label names
  int64_t begin_ns = 0;   ///< steady clock
  int64_t end_ns = 0;
  int64_t detail = 0;  ///< see TraceKind
  TraceRow row = TraceRow::compute;
  TraceKind kind = TraceKind::other;
  TraceLabel of = {};
  int chunk = -1;  ///< of a step of a pipeline
  int lane = 0;    ///< of what a GPU does: which of its streams
  // Of an operation in flight, and of a wait for one:
  const char* collective = "";
  const char* group = "";
  int64_t sent = 0;       ///< bytes
  int64_t received = 0;   ///< bytes
  int64_t waited_ns = 0;  ///< part of the time, in which the rank did nothing else
  uint64_t message = 0;   ///< the same at both ends of a message; 0: not a message
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
  size_t capacity() const { return spans_.size(); }
  void clear() { count_ = 0; }

  /// The text for as long as the ring lives; allocates when it is new.
  const char* keep(std::string_view text);
  /// What the thread works at: the row of its spans, and what they are part of there.
  TraceRow row() const { return row_; }
  void set_row(TraceRow row) { row_ = row; }
  TraceLabel& label() { return label(row_); }
  TraceLabel& label(TraceRow row) { return labels_[static_cast<size_t>(row)]; }

 private:
  std::vector<Span> spans_;
  uint64_t count_ = 0;
  std::unordered_set<std::string> texts_;
  TraceRow row_ = TraceRow::compute;
  std::array<TraceLabel, 2> labels_;  // by row
};

/// The calling thread's ring, or null: tracing is off.
TraceRing* trace_ring();
/// What the thread's spans are part of.
TraceLabel trace_label();
/// Which microbatches the thread's spans are of from here on, by row; −1: of none.
void label_microbatches(int compute, int beside);

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

/// Records the time between its construction and destruction, if tracing is on. `name` is a literal. Nothing
/// waits while it lives.
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
      ring_->record({.name = name_,
                     .begin_ns = begin_,
                     .end_ns = trace_now(),
                     .detail = detail_,
                     .row = ring_->row(),
                     .kind = kind_});
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

/// Records a part of a step, and labels what is issued within. Its thread may wait while it lives, also in a
/// coroutine: parts of one row end in the opposite order to their beginning.
class TracePart {
 public:
  /// "layers.3", "attention", forward. `part` is a literal.
  TracePart(std::string_view unit, const char* part, TracePhase phase);
  /// What was part of `of`, in another phase; nothing of a label without unit.
  TracePart(const TraceLabel& of, TracePhase phase);
  ~TracePart();
  TracePart(const TracePart&) = delete;
  TracePart& operator=(const TracePart&) = delete;

 private:
  void begin(const TraceLabel& label);

  TraceRing* ring_;
  TraceRow row_ = TraceRow::compute;
  int64_t begin_ = 0;
  TraceLabel outer_;
};

/// Labels what is issued while it lives; records nothing. Nothing waits meanwhile.
class TraceNamed {
 public:
  TraceNamed(std::string_view unit, const char* part, TracePhase phase);
  explicit TraceNamed(int microbatch);
  ~TraceNamed();
  TraceNamed(const TraceNamed&) = delete;
  TraceNamed& operator=(const TraceNamed&) = delete;

 private:
  TraceRing* ring_;
  TraceLabel outer_;
};

/// The row `beside` while it lives. Nothing waits meanwhile.
class TraceBeside {
 public:
  TraceBeside();
  ~TraceBeside();
  TraceBeside(const TraceBeside&) = delete;
  TraceBeside& operator=(const TraceBeside&) = delete;

 private:
  TraceRing* ring_;
};

}  // namespace phalanx
