// Messages and receives that come in any order find each other, and only each other.
#include "phalanx/comm/transport/matcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <memory>
#include <random>

#include "phalanx/comm/transport/transport.h"

namespace phalanx {
namespace {

// A transport that moves nothing: exchanges are posted to a matcher by hand.
class Nowhere final : public Transport {
 public:
  int rank() const override { return 0; }
  int size() const override { return 3; }
  FailureBoard& failures() override { return failures_; }
  RankPage* page(int rank) override { return rank == 0 ? &page_ : nullptr; }
  bool crowded() const override { return false; }
  void post(Exchange&) override {}
  bool poll(Exchange&) override { return false; }
  void abandon(Exchange&) noexcept override {}

 private:
  FailureBoard failures_;
  RankPage page_;
};

constexpr Fingerprint kCall{.kind = Fingerprint::Kind::exchange};

Tag tag(uint64_t sequence) { return {.group = 9, .sequence = sequence, .step = 0}; }

struct Receive {
  Receive(Nowhere& transport, int from, uint64_t sequence, int64_t bytes)
      : buffer(Tensor::zeros({bytes}, DType::u8)),
        exchange(transport, PooledVector<P2P>{recv_from(from, buffer)}, tag(sequence), kCall) {}
  bool done() const { return exchange.parts.front().done; }
  uint8_t first() const { return buffer.data<uint8_t>()[0]; }
  Tensor buffer;
  Exchange exchange;
};

MessageHeader header(uint64_t sequence, size_t bytes, const Fingerprint& call = kCall) {
  MessageHeader h;
  h.tag = tag(sequence);
  h.packed = call.packed();
  h.numel = call.numel;
  h.bytes = bytes;
  return h;
}

void deliver(Matcher& matcher, int from, const MessageHeader& h, uint8_t content) {
  const Tensor to = matcher.begin(from, h);
  ASSERT_EQ(to.bytes(), h.bytes);
  if (h.bytes > 0) std::memset(to.raw(), content, h.bytes);
  matcher.end(from);
}

class MatcherTest : public testing::Test {
 protected:
  FlightRecorder& recorder() { return transport_.page(0)->recorder; }
  Nowhere transport_;
  Matcher matcher_{0, 3, transport_.page(0)->recorder};
};

TEST_F(MatcherTest, AnyOrderOfMessagesAndReceives) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  // Events of two senders, each with its own order of messages and of receives; equal tags stay in order.
  struct Pair {
    int from;
    uint64_t sequence;
    uint8_t content;
  };
  std::vector<Pair> pairs;
  for (int i = 0; i < 200; ++i) {
    pairs.push_back({1 + static_cast<int>(random() % 2), random() % 20, static_cast<uint8_t>(1 + i)});
  }
  std::list<Receive> receives;
  std::vector<Receive*> of_pair(pairs.size());
  std::vector<size_t> sends(pairs.size());
  for (size_t i = 0; i < sends.size(); ++i) sends[i] = i;
  std::vector<size_t> posts = sends;
  const auto key = [&](size_t i) { return pairs[i].sequence * 3 + static_cast<uint64_t>(pairs[i].from); };
  const auto shuffle = [&](std::vector<size_t>& order) {
    std::vector<uint64_t> rank(100);
    for (uint64_t& r : rank) r = random();
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return rank[key(a)] < rank[key(b)]; });
  };
  shuffle(sends);
  shuffle(posts);
  for (size_t s = 0, p = 0; s < sends.size() || p < posts.size();) {
    if (s < sends.size() && (p == posts.size() || random() % 2 == 0)) {
      const Pair& m = pairs[sends[s++]];
      deliver(matcher_, m.from, header(m.sequence, 5), m.content);
    } else {
      const size_t i = posts[p++];
      of_pair[i] = &receives.emplace_back(transport_, pairs[i].from, pairs[i].sequence, 5);
      matcher_.post(of_pair[i]->exchange);
    }
  }
  for (size_t i = 0; i < pairs.size(); ++i) {
    ASSERT_TRUE(of_pair[i]->done()) << i;
    EXPECT_EQ(of_pair[i]->first(), pairs[i].content) << i;
  }
}

TEST_F(MatcherTest, AReceiveThatComesWhileItsMessageIsOnItsWay) {
  const Tensor to = matcher_.begin(1, header(4, 3));
  Receive receive(transport_, 1, 4, 3);
  matcher_.post(receive.exchange);
  EXPECT_FALSE(receive.done());
  std::memset(to.raw(), 7, 3);
  matcher_.end(1);
  EXPECT_TRUE(receive.done());
  EXPECT_EQ(receive.first(), 7);
}

TEST_F(MatcherTest, AnAbandonedReceiveTakesNothing) {
  auto first = std::make_unique<Receive>(transport_, 2, 4, 3);
  matcher_.post(first->exchange);
  const Tensor to = matcher_.begin(2, header(4, 3));  // into the tensor of the first
  matcher_.abandon(first->exchange);
  first.reset();
  std::memset(to.raw(), 7, 3);
  matcher_.end(2);
  Receive second(transport_, 2, 4, 3);
  matcher_.post(second.exchange);
  deliver(matcher_, 2, header(4, 3), 8);
  EXPECT_EQ(second.first(), 8);
}

TEST_F(MatcherTest, AMessageOfAnotherSizeIsTheReceiversError) {
  Receive receive(transport_, 1, 0, 3);
  Receive other(transport_, 1, 1, 3);
  matcher_.post(receive.exchange);
  matcher_.post(other.exchange);
  deliver(matcher_, 1, header(0, 9), 7);
  deliver(matcher_, 1, header(1, 3), 8);  // the stream goes on
  EXPECT_NO_THROW(matcher_.check(other.exchange));
  EXPECT_EQ(other.first(), 8);
  EXPECT_FALSE(receive.done());
  try {
    matcher_.check(receive.exchange);
    FAIL() << "no error";
  } catch (const CommError& e) {
    EXPECT_THAT(e.what(), testing::AllOf(testing::HasSubstr("rank 1"), testing::HasSubstr("sends 9 bytes"),
                                         testing::HasSubstr("expects 3")));
  }
}

TEST_F(MatcherTest, AMessageOfAnotherCallIsAnErrorThoughNobodyWaitsForIt) {
  const Fingerprint mine{.kind = Fingerprint::Kind::broadcast, .root = 0, .numel = 8};
  const Fingerprint theirs{.kind = Fingerprint::Kind::broadcast, .root = 1, .numel = 8};
  const int slot = recorder().open_group(9, "dp");
  recorder().issue(slot, 9, 0, mine, 32);
  EXPECT_NO_THROW(deliver(matcher_, 1, header(0, 32, mine), 1));
  EXPECT_THROW(deliver(matcher_, 1, header(0, 32, theirs), 1), CommError);
  deliver(matcher_, 1, header(1, 32, theirs), 1);  // not called yet here …
  Exchange called(transport_, {}, tag(1), mine);
  EXPECT_THROW(matcher_.post(called), CommError);  // … and then another
}

}  // namespace
}  // namespace phalanx
