#include "phalanx/train/agree.h"

#include <algorithm>
#include <exception>

#include "phalanx/comm/gather_numbers.h"

namespace phalanx {
namespace {

Tensor tensor_of(std::string_view text) {
  const Tensor t = Tensor::empty({static_cast<int64_t>(text.size())}, DType::u8);
  std::ranges::copy(text, t.data<uint8_t>());
  return t;
}

std::string text_of(const Tensor& tensor) {
  const std::span<uint8_t> bytes = tensor.span<uint8_t>();
  return {bytes.begin(), bytes.end()};
}

}  // namespace

void all_or_none(Group& group, FunctionRef<void()> body) {
  std::string said;
  std::exception_ptr broken;
  bool failed = true;
  try {
    body();
    failed = false;
  } catch (const Error& e) {
    said = e.what();
  } catch (const std::exception& e) {
    said = e.what();
    broken = std::current_exception();
  }
  const std::vector<int64_t> failures = gather_numbers(group, failed ? 1 : 0);
  const auto first = std::ranges::find(failures, 1);
  if (first == failures.end()) return;
  const int rank = static_cast<int>(first - failures.begin());
  if (group.size() > 1) said = format("rank {}: {}", group.rank(), said);
  const std::string text = broadcast_text(group, said, rank);
  if (broken) std::rethrow_exception(broken);
  throw Error("{}", text);
}

std::vector<std::string> gather_texts(Group& group, std::string_view text) {
  const std::vector<int64_t> sizes = gather_numbers(group, static_cast<int64_t>(text.size()));
  std::vector<Tensor> parts(sizes.size());
  PooledVector<P2P> messages;
  if (group.rank() == 0) {
    for (int r = 1; r < group.size(); ++r) {
      Tensor& part = parts[static_cast<size_t>(r)];
      part = Tensor::empty({sizes[static_cast<size_t>(r)]}, DType::u8);
      messages.push_back(recv_from(r, part));
    }
  } else {
    messages.push_back(send_to(0, tensor_of(text)));
  }
  group.exchange(std::move(messages)).wait();
  if (group.rank() != 0) return {};
  std::vector<std::string> texts = {std::string(text)};
  for (size_t r = 1; r < parts.size(); ++r) texts.push_back(text_of(parts[r]));
  return texts;
}

std::string broadcast_text(Group& group, std::string_view text, int root) {
  const int64_t own = group.rank() == root ? static_cast<int64_t>(text.size()) : 0;
  const int64_t size = gather_numbers(group, own)[static_cast<size_t>(root)];
  const Tensor bytes = group.rank() == root ? tensor_of(text) : Tensor::empty({size}, DType::u8);
  return text_of(group.broadcast(bytes, root).wait());
}

}  // namespace phalanx
