#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "phalanx/train/report.h"

namespace phalanx {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(ReportMemory, IsToldByRankTheLargestFirst) {
  TrainingHistory h = {.title = "tiny"};
  EXPECT_THAT(report_html(h), Not(HasSubstr("<h2>Memory")));
  h.expected_memory = {.weights = 3 << 20, .gradients = 5 << 20, .to_come = 5 << 20, .activations = 1 << 20};
  h.memory = {{"cuda:0", 5 << 20, 6 << 20}, {"cuda:1", 7 << 20, 9 << 20}};
  const std::string html = report_html(h);
  const size_t larger = html.find("<tr><td>1</td><td>cuda:1</td><td>7.0 MiB</td><td>9.0 MiB</td></tr>");
  const size_t smaller = html.find("<tr><td>0</td><td>cuda:0</td><td>5.0 MiB</td><td>6.0 MiB</td></tr>");
  EXPECT_NE(smaller, std::string::npos);
  EXPECT_LT(larger, smaller);
  EXPECT_THAT(html, HasSubstr("<td>0, expected</td><td></td><td>4.0 MiB</td>"));
  EXPECT_THAT(html, HasSubstr("weights: 75.0 %"));
}

TEST(ReportMemory, OfManyRanksHasThoseThatHadMost) {
  TrainingHistory h = {.title = "tiny"};
  h.memory.resize(1000, {"cpu", 1, 2});
  h.memory[777].peak = 3;
  const std::string html = report_html(h);
  EXPECT_THAT(html, HasSubstr("Of 1000 ranks those that had most."));
  EXPECT_THAT(html, HasSubstr("<tr><td>777</td><td>cpu</td><td>3 B</td>"));
  EXPECT_THAT(html, Not(HasSubstr("<td>999</td>")));
}

}  // namespace
}  // namespace phalanx
