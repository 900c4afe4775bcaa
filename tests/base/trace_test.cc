#include "phalanx/base/chrome_trace.h"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <thread>
#include <vector>

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

TEST(Trace, PartsNestAndLabelWhatIsIssuedWithin) {
  TraceRing ring;
  {
    const TraceScope scope(&ring);
    const TraceNamed microbatch(3);
    const TracePart layer(std::string("layers.") + "7", "attention", TracePhase::backward);
    EXPECT_STREQ(trace_label().unit, "layers.7");
    { const TracePart weights(trace_label(), TracePhase::weights); }
    { const TracePart nothing(TraceLabel{}, TracePhase::weights); }
    {
      const TraceNamed named("layers.8", "weights", TracePhase::gather);
      EXPECT_EQ(trace_label().phase, TracePhase::gather);
    }
    EXPECT_EQ(trace_label().phase, TracePhase::backward);
  }
  const std::vector<Span> spans = ring.spans();
  ASSERT_EQ(spans.size(), 2u);
  EXPECT_EQ(span_text(spans[0]), "layers.7 attention weight gradient m3");
  EXPECT_EQ(span_text(spans[1]), "layers.7 attention backward m3");
  EXPECT_STREQ(ring.label().unit, "");
}

TEST(Trace, WhatRunsBesideHasItsOwnRowAndLabel) {
  TraceRing ring;
  const TraceScope scope(&ring);
  label_microbatches(1, 2);
  {
    const TracePart first("a", "", TracePhase::forward);
    const TraceBeside beside;
    const TracePart second("b", "", TracePhase::backward);
  }
  { const TraceSpan op("op"); }
  const std::vector<Span> spans = ring.spans();
  ASSERT_EQ(spans.size(), 3u);
  EXPECT_EQ(span_text(spans[0]), "b backward m2");
  EXPECT_EQ(spans[0].row, TraceRow::beside);
  EXPECT_EQ(span_text(spans[1]), "a forward m1");
  EXPECT_EQ(spans[1].row, TraceRow::compute);
  EXPECT_EQ(spans[2].row, TraceRow::compute);
}

TEST(Trace, ChromeFormat) {
  const TraceLabel of = {.unit = "layers.0", .part = "mlp", .phase = TracePhase::forward, .microbatch = 2};
  const std::vector<Span> spans = {
      {.name = "matmul", .begin_ns = 6'000, .end_ns = 7'500, .detail = 3, .kind = TraceKind::product},
      {.begin_ns = 5'000, .end_ns = 7'500, .kind = TraceKind::part, .of = of},
      {.name = "exchange",
       .begin_ns = 4'000,
       .end_ns = 6'000,
       .row = TraceRow::comm,
       .kind = TraceKind::communication,
       .of = {.microbatch = 2},
       .collective = "exchange",
       .group = "pp",
       .sent = 8,
       .waited_ns = 500,
       .message = 255},
      {.name = "barrier", .begin_ns = 5'500, .end_ns = 6'500, .row = TraceRow::comm},
      {.name = "adamw", .begin_ns = 7'000, .end_ns = 9'000, .row = TraceRow::device, .lane = 1}};
  const std::array<std::string, 2> ranks = {
      chrome_events(spans, {.rank = 0, .name = "rank 0", .shift_ns = -4'000}), ""};
  EXPECT_EQ(
      chrome_trace(ranks),
      R"({"displayTimeUnit": "ms", "traceEvents": [
{"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "job"}},
{"ph": "M", "name": "thread_name", "pid": 0, "tid": 0, "args": {"name": "rank 0"}},
{"ph": "M", "name": "thread_sort_index", "pid": 0, "tid": 0, "args": {"sort_index": 0}},
{"ph": "M", "name": "thread_name", "pid": 0, "tid": 2000000, "args": {"name": "rank 0, in flight"}},
{"ph": "M", "name": "thread_sort_index", "pid": 0, "tid": 2000000, "args": {"sort_index": 2}},
{"ph": "X", "cat": "communication", "name": "exchange pp m2", "pid": 0, "tid": 2000000, )"
      R"("ts": 0.000, "dur": 2.000, "args": {"group": "pp", "sent": 8, "received": 0, "waited_us": 0.500}},
{"ph": "s", "cat": "message", "name": "message", "id": "0xff", "pid": 0, "tid": 2000000, "ts": 0.000},
{"ph": "X", "cat": "forward", "name": "layers.0 mlp forward m2", "pid": 0, "tid": 0, )"
      R"("ts": 1.000, "dur": 2.500, "args": {}},
{"ph": "M", "name": "thread_name", "pid": 0, "tid": 3000000, "args": {"name": "rank 0, in flight"}},
{"ph": "M", "name": "thread_sort_index", "pid": 0, "tid": 3000000, "args": {"sort_index": 3}},
{"ph": "X", "cat": "communication", "name": "barrier", "pid": 0, "tid": 3000000, )"
      R"("ts": 1.500, "dur": 1.000, "args": {"group": "", "sent": 0, "received": 0, "waited_us": 0.000}},
{"ph": "X", "cat": "op", "name": "matmul", "pid": 0, "tid": 0, )"
      R"("ts": 2.000, "dur": 1.500, "args": {"operations": 3}},
{"ph": "M", "name": "thread_name", "pid": 0, "tid": 513000000, "args": {"name": "rank 0, GPU stream 1"}},
{"ph": "M", "name": "thread_sort_index", "pid": 0, "tid": 513000000, "args": {"sort_index": 513}},
{"ph": "X", "cat": "op", "name": "adamw", "pid": 0, "tid": 513000000, "ts": 3.000, "dur": 2.000, "args": {}}
]}
)");
}

}  // namespace
}  // namespace phalanx
