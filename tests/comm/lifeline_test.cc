// The hub and its lifelines, without a transport: who is missing, dead, silent or a stranger is said in
// words.
#include "phalanx/comm/lifeline/lifeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <future>

#include "phalanx/base/error.h"
#include "phalanx/comm/lifeline/hub.h"
#include "phalanx/comm/rank_page.h"

namespace phalanx {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;
using namespace std::chrono_literals;

// A hub, and what lifelines need to find it.
struct World {
  explicit World(int n, std::chrono::milliseconds meeting = 20s, std::chrono::milliseconds silence = 10s)
      : ranks(n), liveness(silence), place(listen_at("127.0.0.1", 0)), patience(meeting) {}
  LifelineOptions options(int rank) const {
    return {.rank = rank,
            .ranks = ranks,
            .port = place.second,
            .key = "key",
            .meeting = patience,
            .liveness = liveness};
  }
  int ranks;
  std::chrono::milliseconds liveness;
  std::pair<int, int> place;
  std::chrono::milliseconds patience;
  Hub hub{{.listener = place.first, .ranks = ranks, .key = "key", .meeting = patience, .liveness = liveness}};
};

// A failure that a lifeline hears of.
struct Heard {
  std::promise<std::string> promise;
  LifelineEvents events() {
    return {.on_failure = [this](int, const std::string& why) { promise.set_value(why); }, .page = {}};
  }
  std::string text() {
    std::future<std::string> future = promise.get_future();
    return future.wait_for(20s) == std::future_status::ready ? future.get() : "nothing";
  }
};

TEST(Lifeline, EveryTextReachesEveryRank) {
  World world(3);
  std::vector<std::future<std::vector<std::string>>> all;
  for (int r = 0; r < 3; ++r) {
    all.push_back(std::async(std::launch::async, [&world, r] {
      Lifeline lifeline(world.options(r));
      const std::vector<std::string> first = lifeline.share(format("of {}", r));
      EXPECT_THAT(first, ElementsAre("of 0", "of 1", "of 2"));
      const std::vector<std::string> second = lifeline.share(r == 1 ? std::string(300'000, 'x') : "");
      lifeline.start({});
      lifeline.leave();
      EXPECT_TRUE(lifeline.wait_for_the_others());
      return second;
    }));
  }
  for (auto& f : all) EXPECT_THAT(f.get(), ElementsAre("", std::string(300'000, 'x'), ""));
  world.hub.finish();
}

TEST(Lifeline, WhoeverDoesNotComeIsNamed) {
  World world(4, 300ms);
  Lifeline zero(world.options(0));
  Lifeline two(world.options(2));
  try {
    zero.share("");
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("ranks 1, 3 of 4 never came"));
  }
}

TEST(Lifeline, NobodyAnswers) {
  const auto [fd, port] = listen_at("127.0.0.1", 0);
  close(fd);
  try {
    const Lifeline lifeline({.port = port, .meeting = 100ms});
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), AllOf(HasSubstr("rank 0 did not answer"), HasSubstr(format("127.0.0.1:{}", port))));
  }
}

TEST(Lifeline, APortThatIsTaken) {
  const auto [fd, port] = listen_at("127.0.0.1", 0);
  const int taken = port;
  EXPECT_THROW(listen_at("127.0.0.1", taken), Error);
  close(fd);
}

TEST(Lifeline, ARankThatIsGoneAndARankThatFails) {
  for (const bool fails : {false, true}) {
    World world(2);
    Heard heard;
    Lifeline survivor(world.options(0));
    auto other = std::make_unique<Lifeline>(world.options(1));
    auto shared = std::async(std::launch::async, [&] { return survivor.share("a"); });
    other->share("b");
    shared.get();
    survivor.start(heard.events());
    if (fails) other->fail("out of luck");
    other.reset();
    EXPECT_THAT(heard.text(),
                fails ? HasSubstr("out of luck") : HasSubstr(format("rank 1 ({}) is gone", process_name())));
    survivor.leave();
    EXPECT_FALSE(survivor.wait_for_the_others());
    world.hub.finish();
  }
}

TEST(Lifeline, WhoeverComesToAWorldThatHasFailedHearsWhy) {
  World world(2);
  {
    Lifeline stranger(world.options(5));
    EXPECT_THAT([&] { stranger.share("x"); }, ThrowsMessage<Error>(HasSubstr("came to a world of 2 ranks")));
  }
  Lifeline zero(world.options(0));
  EXPECT_THAT([&] { zero.share("y"); }, ThrowsMessage<Error>(HasSubstr("rank 5 (")));
}

TEST(Lifeline, ASilentRankAndASilentHub) {
  World world(2, 20s, 300ms);
  Heard heard;
  Lifeline talks(world.options(0));
  Lifeline silent(world.options(1));  // never started: no sign of life
  auto shared = std::async(std::launch::async, [&] { return talks.share("a"); });
  silent.share("b");
  shared.get();
  talks.start(heard.events());
  EXPECT_THAT(heard.text(), AllOf(HasSubstr("rank 1"), HasSubstr("no sign of life for 0.")));

  const auto [listener, port] = listen_at("127.0.0.1", 0);  // accepts, and says nothing
  Lifeline alone({.port = port, .liveness = 300ms});
  Heard of_hub;
  alone.start(of_hub.events());
  EXPECT_THAT(of_hub.text(), AllOf(HasSubstr("rank 0's process"), HasSubstr("no sign of life for 0.")));
  close(listener);
}

TEST(Lifeline, AStrangerChangesNothing) {
  World world(2);
  const int noise = connect_to({"127.0.0.1"}, world.place.second, 5s);
  const std::string request = "GET / HTTP/1.1\r\nHost: somebody\r\n\r\n";
  ASSERT_GT(write(noise, request.data(), request.size()), 0);
  LifelineOptions other_world = world.options(1);
  other_world.key = "another key";
  Lifeline stranger(other_world);
  Lifeline zero(world.options(0));
  Lifeline one(world.options(1));
  auto shared = std::async(std::launch::async, [&] { return zero.share("a"); });
  EXPECT_THAT(one.share("b"), ElementsAre("a", "b"));
  shared.get();
  close(noise);
}

TEST(Lifeline, PagesComeFromThoseThatAreAsked) {
  World world(2);
  RankPage page;
  page.state = RankPage::State::running;
  const int slot = page.recorder.open_group(77, "dp");
  page.recorder.advance(page.recorder.issue(slot, 77, 4, {.numel = 3}, 24), FlightRecorder::State::finished);
  Lifeline asks(world.options(0));
  Lifeline answers(world.options(1));
  auto shared = std::async(std::launch::async, [&] { return asks.share(""); });
  answers.share("");
  shared.get();
  asks.start({});
  answers.start({.on_failure = {}, .page = [&] { return page.snapshot(); }});
  asks.ask_for_pages();
  std::map<int, std::string> pages;
  for (int i = 0; i < 2000 && pages.empty(); ++i) {
    usleep(5000);
    pages = asks.take_pages();
  }
  ASSERT_TRUE(pages.contains(1));
  RankPage mirror;
  mirror.restore(pages[1]);
  EXPECT_EQ(mirror.state, RankPage::State::running);
  EXPECT_TRUE(mirror.recorder.reached(77, 4));
  EXPECT_FALSE(mirror.recorder.reached(77, 5));
  EXPECT_THAT(mirror.recorder.last_text(), HasSubstr("finished barrier #4 of group dp"));
  for (Lifeline* l : {&asks, &answers}) l->leave();
}

TEST(PackedTexts, ComeBackAsTheyWere) {
  const std::vector<std::string> texts = {"", "a:b", "12:", std::string("\0x", 2), ""};
  EXPECT_EQ(unpack_texts(pack_texts(texts)), texts);
  EXPECT_THROW(unpack_texts("5:abc"), Error);
  EXPECT_THROW(unpack_texts("abc"), Error);
}

}  // namespace
}  // namespace phalanx
