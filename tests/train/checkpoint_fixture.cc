#include "tests/train/checkpoint_fixture.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <mutex>

#include "phalanx/comm/transport/threads.h"

namespace phalanx::testing {
namespace {

namespace fs = std::filesystem;

// Any bits, NaNs among them: a mix (splitmix64) of the step, the name and the place in the full tensor.
void fill(const NamedTensor& t, int64_t step) {
  const uint64_t key = static_cast<uint64_t>(step) * 0x9e3779b97f4a7c15u + std::hash<std::string>()(t.name);
  const size_t size = dtype_size(t.local.dtype());
  const Shape& shape = t.slice.local;
  const int64_t row = shape.rank() > 0 ? shape[shape.rank() - 1] : 1;
  uint64_t place = 0;
  for (int64_t i = 0; i < t.local.numel(); ++i, ++place) {
    if (i % row == 0) place = static_cast<uint64_t>(t.slice.global_index(i));
    uint64_t bits = key + place * 0xd1b54a32d192ed03u;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    bits ^= bits >> 31;
    std::memcpy(t.local.raw() + static_cast<size_t>(i) * size, &bits, size);
  }
}

NamedTensor part_of(const TensorSpec& spec, const Mesh& mesh) {
  const LocalSlice slice = local_slice(spec.name, spec.shape, spec.placement, mesh);
  return {.name = spec.name,
          .local = Tensor::empty(slice.local, spec.dtype),
          .slice = slice,
          .written_here = holders(spec.placement, mesh).front() == mesh.world().rank()};
}

}  // namespace

std::vector<TensorSpec> some_tensors(int64_t large) {
  return {{"embedding", {12, 6}, DType::f32, {}},
          {"layers.0.column", {8, 5}, DType::f32, {{Axis::tp, 0}}},
          {"layers.0.row", {5, 8}, DType::f64, {{Axis::tp, 1}}},
          {"layers.0.experts", {4, 6, 8}, DType::f32, {{Axis::ep, 0}, {Axis::etp, 2}}},
          {"layers.0.five", {4, 2, 4, 3, 2}, DType::i32, {{Axis::ep, 0}, {Axis::etp, 2}}},
          {"optimizer.m.layers.0.row", {5, 8}, DType::f32, {{Axis::tp, 1}}},
          {"scalar", {}, DType::i64, {}},
          {"none \"é\"", {0, 3}, DType::u8, {}},
          {"bytes", {7}, DType::u8, {}},
          {"large", {4 * large, 1024}, DType::f32, {{Axis::tp, 0}}}};
}

std::vector<NamedTensor> tensors_of(const std::vector<TensorSpec>& specs, int64_t step, const Mesh& mesh) {
  std::vector<NamedTensor> tensors;
  for (const TensorSpec& spec : specs) {
    tensors.push_back(part_of(spec, mesh));
    fill(tensors.back(), step);
  }
  return tensors;
}

std::string difference(const std::vector<NamedTensor>& tensors, int64_t step) {
  for (const NamedTensor& t : tensors) {
    NamedTensor expected = t;
    expected.local = Tensor::empty(t.local.shape(), t.local.dtype());
    fill(expected, step);
    if (t.local.bytes() > 0 && std::memcmp(expected.local.raw(), t.local.raw(), t.local.bytes()) != 0) {
      return t.name;
    }
  }
  return "";
}

TrainerState state_of(int64_t step) {
  TrainerState state;
  state.set("step", step);
  state.set("data.position", step * 1'000'003);
  state.set("data.seed", std::numeric_limits<uint64_t>::max() - static_cast<uint64_t>(step));
  state.set("lr", 1e-3 / static_cast<double>(step + 3));
  state.set("best", std::numeric_limits<double>::infinity());
  state.set("schedule", "cosine \"1\"\n");
  state.set("done", step % 2 == 0);
  return state;
}

fs::path save_step(const fs::path& dir, int64_t step, const SaveCase& c) {
  fs::path path;
  run_thread_ranks({.ranks = c.layout.ranks()}, [&](Group& world) {
    Mesh mesh(world, c.layout);
    const CheckpointContents contents{.step = step,
                                      .layout = c.layout.text(),
                                      .config = "[train]\nsteps = 7\n",
                                      .state = state_of(step),
                                      .tensors = tensors_of(c.specs, step, mesh)};
    const SavedReport report = save_checkpoint(dir, contents, world, c.options);
    if (world.rank() == 0) path = report.path;
  });
  return path;
}

Loaded load_step(const fs::path& path, const SaveCase& c) {
  Loaded out;
  std::mutex mutex;
  run_thread_ranks({.ranks = c.layout.ranks()}, [&](Group& world) {
    Mesh mesh(world, c.layout);
    std::vector<NamedTensor> tensors = tensors_of(c.specs, -1, mesh);
    const LoadedCheckpoint loaded = load_checkpoint(path, tensors, world);
    std::string different = difference(tensors, loaded.step);
    if (loaded.state != state_of(loaded.step)) different += " state";
    if (loaded.config != "[train]\nsteps = 7\n") different += " config";
    const std::lock_guard lock(mutex);
    out.step = loaded.step;
    out.path = loaded.path;
    out.note = loaded.note;
    out.difference += different;
  });
  return out;
}

std::string in_child(const std::function<std::string()>& body) {
  std::array<int, 2> ends{};
  PHX_CHECK(::pipe(ends.data()) == 0, "no pipe");
  const pid_t child = ::fork();
  PHX_CHECK(child >= 0, "no process");
  if (child == 0) {
    ::close(ends[0]);
    std::string text;
    try {
      text = body();
    } catch (const std::exception& e) {
      text = format("exception: {}", e.what());
    }
    const ssize_t written = ::write(ends[1], text.data(), text.size());
    ::_exit(written == static_cast<ssize_t>(text.size()) ? 0 : 1);
  }
  ::close(ends[1]);
  std::string text;
  std::array<char, 4096> part{};
  for (ssize_t n = 0; (n = ::read(ends[0], part.data(), part.size())) > 0;) {
    text.append(part.data(), static_cast<size_t>(n));
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) return format("signal {}", WTERMSIG(status));
  return WEXITSTATUS(status) == 0 ? text : format("exit {}", WEXITSTATUS(status));
}

std::vector<std::string> names_in(const fs::path& dir) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(dir)) names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  return names;
}

}  // namespace phalanx::testing
