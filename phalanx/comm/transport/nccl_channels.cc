#include "phalanx/comm/transport/nccl_channels.h"

#include <algorithm>
#include <condition_variable>

namespace phalanx::nccl {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kGrace(2);     // for the lifeline, which knows more than NCCL
constexpr std::chrono::seconds kFlush(10);    // at the end of a world
constexpr std::chrono::seconds kStopping(5);  // of GPUs, after an abort
constexpr std::chrono::milliseconds kNap(1);

}  // namespace

class Channels::Link final : public GroupLink {
 public:
  Link(Channels& channels, uint64_t group) : channels_(channels), group_(group) {}
  ~Link() override { channels_.close(group_); }

 private:
  Channels& channels_;
  uint64_t group_;
};

Channels::Channels(Transport& host, Device device, const Deadlines& deadlines)
    : host_(host),
      device_(device),
      deadlines_(deadlines),
      watcher_([this](const std::stop_token& stop) { abort_if_stuck(stop); }) {}

Channels::~Channels() {
  watcher_.request_stop();
  watcher_.join();
  try {
    close_all();
  } catch (const std::exception&) {  // the world has ended, one way or another
  }
}

std::unique_ptr<GroupLink> Channels::open(const GroupInfo& group) {
  const std::lock_guard lock(mutex_);
  OfGroup& opened = groups_[group.id];
  opened.members = {
      .group = group.id, .group_name = group.name, .number = 0, .ranks = group.members, .rank = group.rank};
  return std::make_unique<Link>(*this, group.id);
}

void Channels::close(uint64_t group) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = groups_.find(group);
  for (auto& [number, channel] : found->second.channels) closing_.push_back(std::move(channel));
  groups_.erase(found);
}

Channels::OfGroup& Channels::group(uint64_t id) {
  const auto found = groups_.find(id);
  PHX_CHECK(found != groups_.end(), "group {:x} is not open", id);
  return found->second;
}

Channel& Channels::of_group(uint64_t id) {
  OfGroup& g = group(id);
  return channel(g, 0, g.members.ranks);
}

Channel& Channels::of_pair(uint64_t id, int peer) {
  OfGroup& g = group(id);
  if (g.members.ranks.size() == 2) return of_group(id);
  const int me = host_.rank();
  const int low = std::min(me, peer);
  const int high = std::max(me, peer);
  const auto number =
      1 + static_cast<uint64_t>(low) * static_cast<uint64_t>(host_.size()) + static_cast<uint64_t>(high);
  return channel(g, number, {low, high});
}

Channel& Channels::channel(OfGroup& group, uint64_t number, const std::vector<int>& ranks) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<Channel>& channel = group.channels[number];
  if (!channel) {
    Members members = group.members;
    members.number = number;
    members.ranks = ranks;
    members.rank = static_cast<int>(std::ranges::find(ranks, host_.rank()) - ranks.begin());
    channel = std::make_unique<Channel>(host_, std::move(members), device_);
  }
  return *channel;
}

void Channels::add(Channel& channel, const std::shared_ptr<Launch>& launch) {
  for (const Tensor& t : launch->tensors) {
    PHX_CHECK(t.device() == device_, "{}: a tensor on {} of a rank whose GPU is {}", channel.text(*launch),
              device_name(t.device()), device_name(device_));
  }
  launch->ready.record(current_stream());
  group(channel.members().group).issued.push_back(launch);
  const std::lock_guard lock(mutex_);
  channel.add(launch);
}

void Channels::taken(const Call& call) {
  const auto found = groups_.find(call.group().id);
  if (found == groups_.end()) return;
  std::erase_if(found->second.issued, [&](const std::shared_ptr<Launch>& launch) {
    if (launch->sequence != call.sequence()) return false;
    if (launch->state == Launch::State::queued) current_stream().wait(launch->done);
    launch->tensors.clear();
    return true;
  });
}

std::vector<Channel*> Channels::all() const {
  std::vector<Channel*> channels;
  for (const auto& [id, group] : groups_) {
    for (const auto& [number, channel] : group.channels) channels.push_back(channel.get());
  }
  for (const auto& channel : closing_) channels.push_back(channel.get());
  return channels;
}

bool Channels::in_motion() const {
  const std::lock_guard lock(mutex_);
  return std::ranges::any_of(all(), &Channel::in_motion);
}

bool Channels::move() {
  const std::lock_guard lock(mutex_);
  bool moved = false;
  for (const auto& [id, group] : groups_) {
    for (const auto& [number, channel] : group.channels) moved = channel->move() || moved;
  }
  std::erase_if(closing_, [](const std::unique_ptr<Channel>& channel) { return channel->close(true); });
  watch();
  return moved;
}

// The first error of NCCL's, once it has lasted.
void Channels::watch() {
  for (Channel* channel : all()) {
    const std::string& error = channel->error();
    if (error.empty()) continue;
    const Clock::time_point now = Clock::now();
    if (wrong_since_ == Clock::time_point{}) wrong_since_ = now;
    if (now - wrong_since_ > kGrace) fail(format("rank {}: {}", host_.rank(), error));
    return;
  }
}

void Channels::fail(const std::string& message) noexcept {
  if (host_.failures().fail(host_.rank(), message)) host_.wake_all();
}

// What the GPU is in, and who has not called it; "" if it waits for nobody.
std::string Channels::stuck() {
  const std::lock_guard lock(mutex_);
  for (Channel* channel : all()) {
    const Launch* launch = channel->first_unfinished();
    if (!launch) continue;
    std::string absent;
    for (const int r : channel->members().ranks) {
      const RankPage* page = host_.page(r);
      if (!page || page->recorder.reached(channel->members().group, launch->sequence)) continue;
      absent += format("{}rank {} never called it (last operation: {})", absent.empty() ? ": " : "; ", r,
                       page->recorder.last_text());
    }
    return channel->text(*launch) + absent;
  }
  return "";
}

void Channels::look(std::chrono::nanoseconds waited) {
  host_.progress();
  move();
  if (waited > deadlines_.progress && !host_.failures().failed()) {
    const std::string what = stuck();
    const double seconds = std::chrono::duration<double>(waited).count();
    if (!what.empty()) {
      fail(format("rank {} waited {:.1f} s for its GPU, in {}", host_.rank(), seconds, what));
    }
  }
  const auto failure = host_.failures().first();
  if (!failure) return;
  if (failure->rank == host_.rank()) throw CommError(failure->message);
  const std::string what = stuck();
  throw CommError(format("{} [rank {} waited for its GPU{}{}]", failure->message, host_.rank(),
                         what.empty() ? "" : ", in ", what));
}

// The rank's thread may be stuck in a queue that the GPU does not empty, where it looks at nothing.
void Channels::abort_if_stuck(const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any never;
  std::unique_lock lock(mutex);
  Clock::time_point failed{};
  while (!stop.stop_requested()) {
    never.wait_for(lock, stop, std::chrono::milliseconds(100), [] { return false; });
    if (!host_.failures().failed()) continue;
    const Clock::time_point now = Clock::now();
    if (failed == Clock::time_point{}) failed = now;
    if (now - failed < kGrace) continue;
    const std::lock_guard channels(mutex_);
    for (Channel* channel : all()) channel->abort();
    return;
  }
}

void Channels::close_all() {
  const auto wait = [](std::chrono::seconds limit, auto done) {
    const Clock::time_point end = Clock::now() + limit;
    while (!done() && Clock::now() < end) std::this_thread::sleep_for(kNap);
  };
  const std::vector<Channel*> channels = all();
  wait(kFlush, [&] {
    if (host_.failures().failed()) return true;
    host_.progress();
    bool closed = true;
    for (Channel* channel : channels) closed = channel->close(false) && closed;
    return closed;
  });
  for (Channel* channel : channels) channel->abort();
  wait(kStopping, [&] { return std::ranges::none_of(channels, &Channel::running); });
}

}  // namespace phalanx::nccl
