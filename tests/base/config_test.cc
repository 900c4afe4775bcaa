#include "phalanx/base/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace phalanx {
namespace {

using testing::AllOf;
using testing::HasSubstr;

enum class Colour { red, green, blue };

struct Example {
  bool tied = true;
  int layers = 2;
  int64_t width = 8;
  uint64_t seed = 1337;
  double lr = 1e-3;
  double eps = 1e-5;
  double dropout = 0;
  std::string text = "data/a.txt";
  Colour colour = Colour::green;

  friend bool operator==(const Example&, const Example&) = default;
};

ConfigTable table(Example& e) {
  ConfigTable t;
  ConfigSection& model = t.section("model", "The network.");
  model.add("tied", &e.tied, "head and embedding are one");
  model.add("layers", &e.layers, "blocks").at_least(1).at_most(1000);
  model.add("width", &e.width, "of the residual stream").at_least(1);
  model.add("dropout", &e.dropout, "probability").at_least(0).below(1);
  model.choice("colour", &e.colour, {{"red", Colour::red}, {"green", Colour::green}, {"blue", Colour::blue}},
               "for tests");
  ConfigSection& train = t.section("train", "The run.");
  train.add("seed", &e.seed, "of everything random");
  train.add("lr", &e.lr, "learning rate").above(0);
  train.add("eps", &e.eps, "small");
  train.add("text", &e.text, "file");
  return t;
}

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

std::string refusal(const std::string& toml) {
  Example e;
  return refusal([&] { table(e).read(toml, "a.toml"); });
}

std::string set_refusal(const std::string& assignment) {
  Example e;
  return refusal([&] { table(e).set(assignment); });
}

TEST(Config, ReadsEveryType) {
  Example e;
  table(e).read(
      "# comment\n[model]\ntied = false\nlayers = 3\nwidth = 1_000\ncolour = \"blue\"\n"
      "[train]\nseed = 9223372036854775807\nlr = 2\neps = 1e-12\ntext = 'C:\\x'\n",
      "a.toml");
  const Example expected{.tied = false,
                         .layers = 3,
                         .width = 1000,
                         .seed = 9223372036854775807u,
                         .lr = 2,
                         .eps = 1e-12,
                         .text = "C:\\x",
                         .colour = Colour::blue};
  EXPECT_EQ(e, expected);
}

TEST(Config, OverridesComeLast) {
  Example e;
  ConfigTable t = table(e);
  t.read("[model]\nlayers = 3\n", "a.toml");
  t.set("model.layers=4");
  t.set("model.tied = false");
  t.set("train.lr=1e-4");
  t.set("train.text=some file = 1.txt");
  t.set("model.colour=\"red\"");
  EXPECT_EQ(e.layers, 4);
  EXPECT_FALSE(e.tied);
  EXPECT_EQ(e.lr, 1e-4);
  EXPECT_EQ(e.text, "some file = 1.txt");
  EXPECT_EQ(e.colour, Colour::red);
  EXPECT_EQ(t.field("model.layers").where(), "--set model.layers=4");
  EXPECT_EQ(t.field("model.width").where(), "");
}

TEST(Config, RemembersWhereAValueCameFrom) {
  Example e;
  ConfigTable t = table(e);
  t.read("\n[model]\nwidth = 3\n", "a.toml");
  EXPECT_EQ(t.field("model.width").where(), "a.toml:3");
}

TEST(Config, FindsThePlaceThatAMessageSpeaksOf) {
  Example e;
  ConfigTable t = table(e);
  t.read("[model]\nwidth = 3\n[train]\neps = 0.5", "a.toml");
  EXPECT_EQ(t.place_of("model.width 3 is not a multiple of train.eps 0.5"), "a.toml:2");
  EXPECT_EQ(t.place_of("model.layers 2 is more than train.eps 0.5"), "a.toml:4");  // layers is the default
  EXPECT_EQ(t.place_of("model.width_total and model.layers"), "");
  EXPECT_EQ(t.place_of("nothing"), "");
}

// Values with awkward digits and letters, printed and read back.
TEST(Config, PrintedValuesReadBackUnchanged) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 200; ++i) {
    Example e{.tied = random() % 2 == 0,
              .layers = static_cast<int>(random() % 1000) + 1,
              .width = static_cast<int64_t>(random() >> 1 >> (random() % 60)) + 1,
              .seed = random() >> 1,
              .lr = std::ldexp(static_cast<double>(random() >> 11) + 1, -static_cast<int>(random() % 200)),
              .eps = std::ldexp(-static_cast<double>(random() >> 40), static_cast<int>(random() % 300) - 150),
              .text = "",
              .colour = static_cast<Colour>(random() % 3)};
    for (uint64_t n = random() % 20; n-- > 0;) e.text += static_cast<char>(random() % 127 + 1);
    e.text += "é\"\\\n\t";
    Example copy;
    ConfigTable t = table(copy);
    const std::string printed = table(e).toml();
    SCOPED_TRACE(printed);
    t.read(printed, "printed");
    EXPECT_EQ(copy, e);
    EXPECT_EQ(t.toml(), printed);
  }
}

TEST(Config, UnknownKeysNameTheNearest) {
  EXPECT_EQ(refusal("[model]\nwidht = 3\n"),
            "a.toml:2: unknown key \"widht\" in [model]; the nearest known key is \"width\"");
  EXPECT_EQ(refusal("\n\n[modle]\nwidth = 3\n"),
            "a.toml:3: unknown section [modle]; the nearest known section is [model]");
  EXPECT_EQ(refusal("[model]\nlr = 3\n"), "a.toml:2: unknown key \"lr\" in [model]; it belongs to [train]");
  EXPECT_EQ(refusal("lr = 3\n"),
            "a.toml:1: key \"lr\" stands outside every section; it belongs below [train]");
  EXPECT_EQ(refusal("trian = 3\n"),
            "a.toml:1: key \"trian\" stands outside every section; the nearest known section is [train]");
  EXPECT_EQ(
      set_refusal("model.dropuot=1"),
      "--set model.dropuot=1: unknown key \"dropuot\" in [model]; the nearest known key is \"dropout\"");
}

TEST(Config, WrongTypesSayWhatWasExpectedAndFound) {
  EXPECT_EQ(refusal("[model]\nwidth = \"wide\"\n"),
            "a.toml:2: model.width: expected an integer of at least 1, found the text \"wide\"");
  EXPECT_EQ(refusal("[model]\nwidth = 1.5\n"),
            "a.toml:2: model.width: expected an integer of at least 1, found the number 1.5");
  EXPECT_EQ(refusal("[model]\ntied = 1\n"),
            "a.toml:2: model.tied: expected true or false, found the integer 1");
  EXPECT_EQ(refusal("[train]\ntext = true\n"), "a.toml:2: train.text: expected text, found true");
  EXPECT_EQ(refusal("[train]\nlr = [1, 2]\n"),
            "a.toml:2: train.lr: expected a number above 0.0, found a list");
  EXPECT_EQ(refusal("[train.lr]\nx = 3\n"),
            "a.toml:1: train.lr: expected a number above 0.0, found a section");
  EXPECT_EQ(refusal("[model]\ncolour = \"gren\"\n"),
            "a.toml:2: model.colour: expected one of red, green, blue, found the text \"gren\"; "
            "the nearest is \"green\"");
  EXPECT_EQ(set_refusal("model.layers=ten"),
            "--set model.layers=ten: model.layers: expected an integer of at least 1 and at most 1000, "
            "found the text \"ten\"");
}

TEST(Config, RangesHold) {
  EXPECT_EQ(set_refusal("model.layers=1000"), "no error");
  EXPECT_EQ(set_refusal("model.layers=1"), "no error");
  EXPECT_THAT(set_refusal("model.layers=0"),
              HasSubstr("of at least 1 and at most 1000, found the integer 0"));
  EXPECT_THAT(set_refusal("model.layers=1001"), HasSubstr("found the integer 1001"));
  EXPECT_THAT(set_refusal("model.layers=4294967297"), HasSubstr("found the integer 4294967297"));
  EXPECT_THAT(set_refusal("train.seed=-1"), HasSubstr("expected an integer"));
  EXPECT_EQ(set_refusal("model.dropout=0"), "no error");
  EXPECT_THAT(set_refusal("model.dropout=1"), HasSubstr("expected a number of at least 0.0 and below 1.0"));
  EXPECT_THAT(set_refusal("train.lr=0"), HasSubstr("expected a number above 0.0"));
  EXPECT_THAT(set_refusal("train.eps=nan"), HasSubstr("found the number nan"));
  EXPECT_THAT(set_refusal("train.eps=inf"), HasSubstr("found the number inf"));
}

TEST(Config, RefusesWhatIsNoToml) {
  EXPECT_THAT(refusal("[model\n"), HasSubstr("a.toml:1: "));
  EXPECT_THAT(refusal("[model]\nwidth = 1\nwidth = 2\n"), HasSubstr("a.toml:3: "));
  EXPECT_THAT(set_refusal("layers=3"), HasSubstr("expected section.key=value"));
  EXPECT_THAT(set_refusal("model.layers"), HasSubstr("expected section.key=value"));
  EXPECT_THAT(set_refusal(""), HasSubstr("expected section.key=value"));
}

TEST(Config, AValueThatIsRefusedChangesNothing) {
  Example e;
  ConfigTable t = table(e);
  EXPECT_THROW(t.set("model.layers=0"), Error);
  EXPECT_THROW(t.set("model.colour=pink"), Error);
  EXPECT_EQ(e, Example{});
}

TEST(Config, ListsEveryKey) {
  Example e;
  EXPECT_THAT(table(e).listing(), AllOf(HasSubstr("[model]  The network."), HasSubstr("layers = 2 "),
                                        HasSubstr("blocks (an integer of at least 1 and at most 1000)"),
                                        HasSubstr("eps = 1e-05")));
}

TEST(Config, FilesThatCannotBeRead) {
  Example e;
  ConfigTable t = table(e);
  EXPECT_EQ(refusal([&] { t.read_file("/nowhere/a.toml"); }),
            "cannot read /nowhere/a.toml: No such file or directory");
  EXPECT_EQ(refusal([&] { t.read_file("/"); }), "cannot read /: not a regular file");
}

}  // namespace
}  // namespace phalanx
