#include "phalanx/comm/rank.h"

#include <numeric>

namespace phalanx {
namespace {

void run_body(Engine& engine, const RankBody& body) {
  GroupInfo info{.name = "world", .rank = engine.transport().rank()};
  info.members.resize(static_cast<size_t>(engine.transport().size()));
  std::iota(info.members.begin(), info.members.end(), 0);
  Group world(engine, std::move(info));
  body(world);
}

// The text of the exception that is being handled.
std::string what_was_thrown(int rank) {
  try {
    throw;
  } catch (const CommError& e) {
    return e.what();
  } catch (const std::exception& e) {
    return format("rank {}: {}", rank, e.what());
  } catch (...) {
    return format("rank {}: an exception of unknown type", rank);
  }
}

}  // namespace

std::exception_ptr run_rank(Transport& transport, const Deadlines& deadlines, const RankBody& body) {
  RankPage& page = *transport.page(transport.rank());
  page.state.store(RankPage::State::running);
  Engine engine(transport, deadlines);
  try {
    run_body(engine, body);
    if (!engine.given_up().empty()) throw CommError(engine.given_up());
    page.state.store(RankPage::State::left);
    transport.wake_all();
    return nullptr;
  } catch (...) {
    const std::string text = what_was_thrown(transport.rank());
    page.fail(text);
    engine.fail(text);
    return std::current_exception();
  }
}

}  // namespace phalanx
