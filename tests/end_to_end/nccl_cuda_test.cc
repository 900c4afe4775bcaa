// Training over NCCL: processes, as a launcher starts them, which share this machine's GPU or have one each,
// beside one rank. In f64, so that losses and gradient norms of many steps tell of each wrong gradient.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "phalanx/comm/lifeline/frame_socket.h"
#include "tests/cuda_test.h"
#include "tests/paths.h"

namespace phalanx::test {
namespace {

constexpr const char* kConfig = R"([model]
layers = 2
width = 32
heads = 4
context = 16
[train]
dtype = "f64"
device = "cuda"
steps = 8
batch = 8
eval_every = 0
eval_batches = 0
[optimizer]
lr = 1e-2
warmup = 2
)";

struct Step {
  double loss = 0;
  double grad_norm = 0;
};

class TrainOverNccl : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    std::string pattern = (std::filesystem::temp_directory_path() / "phalanx-nccl-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    std::mt19937 engine(seed_);
    std::ofstream text(folder_ / "text.txt");
    for (int i = 0; i < 20'000; ++i) text << "abcdefgh ijkl\n"[engine() % 14];
    std::ofstream(folder_ / "config.toml")
        << kConfig << "[data]\ntext = \"" << (folder_ / "text.txt").string() << "\"\n";
  }
  void TearDown() override {
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

  // The steps of a run of `ranks` processes; what went wrong is told and gives none.
  std::vector<Step> train(int ranks, const std::string& arguments) {
    const auto [listener, port] = listen_at("127.0.0.1", 0);
    close(listener);
    std::string command = "cd " + folder_.string() + " && pids=\n";
    for (int r = 0; r < ranks; ++r) {
      const std::string launched =
          ranks == 1 ? ""
                     : format("RANK={} WORLD_SIZE={} MASTER_ADDR=127.0.0.1 MASTER_PORT={} NCCL_HOSTID={} ", r,
                              ranks, port, r);
      command +=
          format("{}NCCL_IB_DISABLE=1 {} train config.toml --json --set train.out=out{} {} > log{} 2>&1 &\n",
                 launched, testing::kBinary, runs_, arguments, r);
      command += "pids=\"$pids $!\"\n";
    }
    command += "status=0; for p in $pids; do wait $p || status=1; done; exit $status\n";
    ++runs_;
    const int status = std::system(command.c_str());
    std::vector<Step> steps;
    for (int r = 0; r < ranks; ++r) {
      std::ifstream log(folder_ / ("log" + std::to_string(r)));
      std::stringstream all;
      all << log.rdbuf();
      if (status != 0) ADD_FAILURE() << arguments << ": rank " << r << " said " << all.str();
      for (std::string line; std::getline(all, line);) {
        if (!line.starts_with("{")) continue;
        const auto j = nlohmann::json::parse(line);
        steps.push_back({j["loss"].get<double>(), j["grad_norm"].get<double>()});
      }
    }
    return status == 0 ? steps : std::vector<Step>();
  }

  const unsigned seed_ = std::random_device{}();
  std::filesystem::path folder_;
  int runs_ = 0;
};

TEST_F(TrainOverNccl, LayoutsEqualOneRank) {
  SCOPED_TRACE(seed_);
  const std::vector<Step> one = train(1, "");
  ASSERT_EQ(one.size(), 8u);
  EXPECT_LT(one.back().loss, one.front().loss);
  for (const auto& [ranks, arguments] :
       {std::pair(2, "--layout dp=2"), std::pair(2, "--layout tp=2"),
        std::pair(2, "--layout dp=2 --set parallel.zero=3"), std::pair(2, "--layout pp=2"),
        std::pair(4, "--layout dp=2,tp=2 --set parallel.zero=3")}) {
    const std::vector<Step> steps = train(ranks, arguments);
    ASSERT_EQ(steps.size(), one.size()) << arguments;
    for (size_t i = 0; i < one.size(); ++i) {
      EXPECT_NEAR(steps[i].loss / one[i].loss, 1, 1e-9) << arguments << ", step " << i;
      EXPECT_NEAR(steps[i].grad_norm / one[i].grad_norm, 1, 1e-8) << arguments << ", step " << i;
    }
  }
}

}  // namespace
}  // namespace phalanx::test
