#include "phalanx/base/trace.h"

#include <gtest/gtest.h>

#include <array>
#include <thread>

namespace phalanx {
namespace {

TEST(Trace, NothingIsRecordedWithoutAScope) {
  TraceRing ring(4);
  { const TraceSpan span("outside"); }
  {
    const TraceScope scope(&ring);
    const TraceScope off(nullptr);
    const TraceSpan span("off");
  }
  EXPECT_TRUE(ring.spans().empty());
}

TEST(Trace, TheRingKeepsTheLastSpansOldestFirst) {
  TraceRing ring(3);
  const TraceScope scope(&ring);
  for (int i = 0; i < 5; ++i) const TraceSpan span("work", i);
  const std::vector<Span> spans = ring.spans();
  ASSERT_EQ(spans.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(spans[i].detail, static_cast<int64_t>(i) + 2);
    EXPECT_LE(spans[i].begin_ns, spans[i].end_ns);
  }
}

TEST(Trace, AnInnerSpanLiesInTheOuterOne) {
  TraceRing ring;
  {
    const TraceScope scope(&ring);
    const TraceSpan outer("outer");
    const TraceSpan inner("inner");
  }
  const std::vector<Span> spans = ring.spans();
  ASSERT_EQ(spans.size(), 2u);
  EXPECT_STREQ(spans[0].name, "inner");
  EXPECT_GE(spans[0].begin_ns, spans[1].begin_ns);
  EXPECT_LE(spans[0].end_ns, spans[1].end_ns);
}

TEST(Trace, EachThreadHasItsOwn) {
  std::array<TraceRing, 2> rings;
  std::array<std::thread, 2> threads;
  for (size_t r = 0; r < 2; ++r) {
    threads[r] = std::thread([&rings, r] {
      const TraceScope scope(&rings[r]);
      const TraceSpan span("rank", static_cast<int64_t>(r));
    });
  }
  for (std::thread& t : threads) t.join();
  for (size_t r = 0; r < 2; ++r) {
    ASSERT_EQ(rings[r].spans().size(), 1u);
    EXPECT_EQ(rings[r].spans()[0].detail, static_cast<int64_t>(r));
  }
}

TEST(Trace, ChromeFormat) {
  TraceRing a(4);
  TraceRing b(4);
  a.record({.name = "matmul", .begin_ns = 5'000, .end_ns = 7'500, .detail = 3});
  b.record({.name = "all_reduce", .begin_ns = 4'000, .end_ns = 6'000, .detail = 8, .row = TraceRow::comm});
  const std::array<const TraceRing*, 2> rings = {&a, &b};
  EXPECT_EQ(chrome_trace(rings), R"({"displayTimeUnit": "ns", "traceEvents": [
{"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "args": {"name": "rank 0"}},
{"ph": "M", "name": "thread_name", "pid": 0, "tid": 0, "args": {"name": "compute"}},
{"ph": "M", "name": "thread_name", "pid": 0, "tid": 1, "args": {"name": "communication"}},
{"ph": "X", "name": "matmul", "pid": 0, "tid": 0, "ts": 1.000, "dur": 2.500, "args": {"detail": 3}},
{"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "rank 1"}},
{"ph": "M", "name": "thread_name", "pid": 1, "tid": 0, "args": {"name": "compute"}},
{"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "communication"}},
{"ph": "X", "name": "all_reduce", "pid": 1, "tid": 1, "ts": 0.000, "dur": 2.000, "args": {"detail": 8}}
]}
)");
}

}  // namespace
}  // namespace phalanx
