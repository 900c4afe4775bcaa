#include "phalanx/comm/transport/fake.h"

#include <algorithm>
#include <list>
#include <map>
#include <optional>
#include <vector>

#include "phalanx/base/philox.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;

// The messages of one exchange with one peer: an exchange of the inner transport, made when its time comes.
struct Held {
  int peer = 0;
  Clock::time_point release;
  std::vector<size_t> parts;  // of the outer exchange
  std::optional<Exchange> inner;
  bool lost = false;
};

class FakeTransport final : public Transport {
 public:
  FakeTransport(std::unique_ptr<Transport> inner, const FakePlan& plan)
      : inner_(std::move(inner)),
        plan_(plan),
        random_(plan.seed, format("fake transport of rank {}", inner_->rank())) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  FailureBoard& failures() override { return inner_->failures(); }
  RankPage* page(int rank) override { return inner_->page(rank); }
  bool crowded() const override { return inner_->crowded(); }
  void progress() override { inner_->progress(); }
  void wake_all() noexcept override { inner_->wake_all(); }
  void idle(FunctionRef<bool()> look_again, std::chrono::microseconds limit) override {
    inner_->idle(look_again, std::min(limit, std::chrono::microseconds(200)));  // delays end unannounced
  }

  void post(Exchange& exchange) override {
    const int64_t index = exchanges_++;
    const bool faulty = plan_.fault_rank == rank() && plan_.fault_exchange == index;
    if (faulty && plan_.fault == FakePlan::Fault::error) throw Error("exchange {} fails on purpose", index);
    if (faulty && plan_.fault == FakePlan::Fault::silence) silent_ = true;
    std::list<Held>& held = held_[&exchange];
    for (size_t i = 0; i < exchange.parts.size(); ++i) {
      const int peer = exchange.parts[i].message.peer;
      auto of_peer = std::ranges::find(held, peer, &Held::peer);
      if (of_peer == held.end()) {
        Held& h = held.emplace_back();
        h.peer = peer;
        h.release = Clock::now() + delay();
        h.lost = silent_ || (faulty && plan_.fault == FakePlan::Fault::loss);
        of_peer = std::prev(held.end());
      }
      of_peer->parts.push_back(i);
    }
    poll(exchange);
  }

  bool poll(Exchange& exchange) override {
    const auto held = held_.find(&exchange);
    if (held == held_.end()) return true;
    bool all = true;
    for (Held& h : held->second) all = advance(exchange, h) && all;
    if (all) held_.erase(held);
    return all;
  }

  void abandon(Exchange& exchange) noexcept override { held_.erase(&exchange); }

 private:
  std::chrono::microseconds delay() {
    if (plan_.max_delay.count() == 0) return plan_.max_delay;
    const auto limit = static_cast<double>(plan_.max_delay.count());
    return std::chrono::microseconds(static_cast<int64_t>(random_.uniform(draws_++) * limit));
  }

  bool advance(Exchange& exchange, Held& held) {
    if (held.lost || Clock::now() < held.release) return false;
    if (!held.inner) {
      PooledVector<P2P> messages;
      for (const size_t i : held.parts) messages.push_back(exchange.parts[i].message);
      held.inner.emplace(*inner_, std::move(messages), exchange.tag, exchange.fingerprint);
    }
    if (!held.inner->poll()) return false;
    for (const size_t i : held.parts) exchange.parts[i].done = true;
    return true;
  }

  std::unique_ptr<Transport> inner_;
  FakePlan plan_;
  RandomStream random_;
  uint64_t draws_ = 0;
  int64_t exchanges_ = 0;
  bool silent_ = false;
  std::map<const Exchange*, std::list<Held>> held_;
};

}  // namespace

std::unique_ptr<Transport> fake_transport(std::unique_ptr<Transport> inner, const FakePlan& plan) {
  return std::make_unique<FakeTransport>(std::move(inner), plan);
}

}  // namespace phalanx
