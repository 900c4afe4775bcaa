// Runs the messages of a schedule without its computations, until every step has run or none can.
#include <map>
#include <set>
#include <tuple>

#include "phalanx/base/text.h"
#include "phalanx/parallel/schedule/check.h"

namespace phalanx {
namespace {

// Activations (or gradients) into one chunk of a rank.
struct Channel {
  bool gradients = false;
  int rank = 0;
  int chunk = 0;
  friend bool operator<(const Channel& a, const Channel& b) {
    return std::tie(a.gradients, a.rank, a.chunk) < std::tie(b.gradients, b.rank, b.chunk);
  }
  friend bool operator==(const Channel&, const Channel&) = default;
};
struct Message {
  Channel channel;
  int from = 0;  // rank
  int microbatch = 0;
};

// One microbatch's pass through one chunk of a rank, forward or backward.
struct Pass {
  bool backward = false;
  int rank = 0;
  int chunk = 0;
  int microbatch = 0;
  friend bool operator<(const Pass& a, const Pass& b) {
    return std::tie(a.backward, a.rank, a.chunk, a.microbatch) <
           std::tie(b.backward, b.rank, b.chunk, b.microbatch);
  }
};

std::vector<Pass> passes_of(const Step& step, int rank) {
  std::vector<Pass> out;
  if (step.goes_forward()) out.push_back({false, rank, step.chunk, step.microbatch});
  if (step.goes_backward()) out.push_back({true, rank, step.backward_chunk(), step.backward_microbatch()});
  return out;
}

class Network {
 public:
  Network(const Schedule& schedule, Rendezvous rendezvous)
      : schedule_(schedule), rendezvous_(rendezvous), at_(schedule.steps.size(), 0) {
    for (int r = 0; r < schedule.ranks; ++r) {
      for (const Step& step : list(r)) {
        for (const Message& m : received_by(step, r)) order_[m.channel].push_back(m.microbatch);
      }
    }
  }

  void run() {
    for (bool moved = true; moved;) {
      moved = false;
      for (int r = 0; r < schedule_.ranks; ++r) {
        moved = take_sends(r) || moved;
        while (!ended(r) && obstacle(r).empty()) {
          finish_step(r);
          take_sends(r);
          moved = true;
        }
      }
    }
  }

  // Of all ranks that stopped; "" if none did.
  std::string obstacles() {
    std::string text;
    for (int r = 0; r < schedule_.ranks; ++r) {
      if (ended(r) && open_[r].empty()) continue;
      text += (text.empty() ? "" : "; ") + format("rank {} {} waits for {}", r, place(r), obstacle(r));
    }
    return text;
  }

 private:
  const Steps& list(int rank) const { return schedule_.steps[static_cast<size_t>(rank)]; }
  size_t& at(int rank) { return at_[static_cast<size_t>(rank)]; }
  bool ended(int rank) { return at(rank) == list(rank).size(); }
  std::string text(const Step& step) const {
    return step_text(step, schedule_.chunks_per_rank > 1, schedule_.slices);
  }
  std::string name(int microbatch) const { return microbatch_text(microbatch, schedule_.slices); }
  std::string place(int rank) {
    if (ended(rank)) return "after its last step";
    return format("before {} (step {})", text(list(rank)[at(rank)]), at(rank));
  }

  // What a pass needs from a stage of another rank.
  std::vector<Message> received_by(const Step& step, int rank) const {
    std::vector<Message> out;
    for (const Pass& pass : passes_of(step, rank)) {
      const auto source = input_of(pass);
      if (source && source->rank != rank) {
        out.push_back({{pass.backward, rank, pass.chunk}, source->rank, pass.microbatch});
      }
    }
    return out;
  }
  std::vector<Message> sent_by(const Step& step, int rank) const {
    std::vector<Message> out;
    for (const Pass& pass : passes_of(step, rank)) {
      const ChunkPlace here = {rank, pass.chunk};
      const auto target = pass.backward ? schedule_.previous(here) : schedule_.next(here);
      if (target && target->rank != rank) {
        out.push_back({{pass.backward, target->rank, target->chunk}, rank, pass.microbatch});
      }
    }
    return out;
  }
  std::optional<ChunkPlace> input_of(const Pass& pass) const {
    const ChunkPlace here = {pass.rank, pass.chunk};
    return pass.backward ? schedule_.next(here) : schedule_.previous(here);
  }

  // Whether the receiver has come to this message.
  bool posted(const Message& message) {
    const std::vector<int>& order = order_[message.channel];
    const size_t used = used_[message.channel];
    const size_t ahead = rendezvous_ == Rendezvous::posted_ahead ? static_cast<size_t>(schedule_.slices) : 0;
    for (size_t i = 0; i < std::min(used + ahead, order.size()); ++i) {
      if (order[i] == message.microbatch) return true;
    }
    if (used >= order.size() || order[used] != message.microbatch) return false;
    const int receiver = message.channel.rank;
    if (ended(receiver)) return false;
    if (rendezvous_ == Rendezvous::unbatched && !open_[receiver].empty()) return false;
    for (const Message& m : received_by(list(receiver)[at(receiver)], receiver)) {
      if (m.channel == message.channel) return true;
    }
    return false;
  }
  // Forgets the sends of the rank's last step that are taken by now; gives whether there were any.
  bool take_sends(int rank) {
    return std::erase_if(open_[rank], [this](const Message& m) { return posted(m); }) > 0;
  }

  std::string waits_for_receiver(const Message& m) {
    return format("rank {} to take the {} of microbatch {}; that rank stands {}", m.channel.rank,
                  m.channel.gradients ? "gradient" : "activations", name(m.microbatch),
                  place(m.channel.rank));
  }

  // Why the rank's next step cannot run; "" if it can.
  std::string obstacle(int rank) {
    if (!open_[rank].empty()) return waits_for_receiver(open_[rank].front());
    if (ended(rank)) return "";
    const Step& step = list(rank)[at(rank)];
    for (const Pass& pass : passes_of(step, rank)) {
      if (pass.backward && !done_.contains({false, rank, pass.chunk, pass.microbatch}) &&
          !(step.op == StepOp::FB && pass.chunk == step.chunk && pass.microbatch == step.microbatch)) {
        return format("its own forward of microbatch {}, which is not before it", name(pass.microbatch));
      }
      const auto source = input_of(pass);
      if (!source || done_.contains({pass.backward, source->rank, source->chunk, pass.microbatch})) continue;
      return format("the {} of microbatch {} from rank {}, which stands {}",
                    pass.backward ? "gradient" : "activations", name(pass.microbatch), source->rank,
                    place(source->rank));
    }
    if (step.op == StepOp::W && !done_.contains({true, rank, step.chunk, step.microbatch})) {
      return "its own I, which is not before it";
    }
    return "";
  }

  void finish_step(int rank) {
    const Step& step = list(rank)[at(rank)];
    for (const Pass& pass : passes_of(step, rank)) done_.insert(pass);
    for (const Message& m : received_by(step, rank)) ++used_[m.channel];
    open_[rank] = sent_by(step, rank);
    ++at(rank);
  }

  const Schedule& schedule_;
  Rendezvous rendezvous_;
  std::vector<size_t> at_;                     // by rank: its next step
  std::map<Channel, std::vector<int>> order_;  // microbatches in the order of the receiver's steps
  std::map<Channel, size_t> used_;             // of them
  std::map<int, std::vector<Message>> open_;   // by rank: sends of its last step that may not be taken yet
  std::set<Pass> done_;
};

}  // namespace

std::string deadlock(const Schedule& schedule, Rendezvous rendezvous) {
  Network network(schedule, rendezvous);
  network.run();
  return network.obstacles();
}

}  // namespace phalanx
