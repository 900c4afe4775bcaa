#include "phalanx/comm/lifeline/lifeline.h"

#include <poll.h>
#include <unistd.h>

#include <array>

#include "phalanx/base/error.h"
#include "phalanx/comm/lifeline/beat.h"

namespace phalanx {
namespace {

constexpr std::chrono::milliseconds kTick(20);

}  // namespace

std::string process_name() {
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  return format("pid {} on host {}", getpid(), host.data());
}

Lifeline::Lifeline(LifelineOptions options)
    : options_(std::move(options)), socket_(connect_to(options_.addresses, options_.port, options_.meeting)) {
  send({.kind = Frame::Kind::hello,
        .rank = options_.rank,
        .bytes = pack_texts({options_.key, process_name()})});
}

Lifeline::~Lifeline() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

std::vector<std::string> Lifeline::share(const std::string& text) {
  send({.kind = Frame::Kind::share, .rank = options_.rank, .bytes = text});
  const auto end = Clock::now() + options_.meeting + options_.liveness;  // the hub says first who is missing
  auto beat = Clock::now();
  while (Clock::now() < end) {
    wait_a_moment(kTick);
    socket_.receive();
    while (const std::optional<Frame> frame = socket_.next()) {
      if (frame->kind == Frame::Kind::share) return unpack_texts(frame->bytes);
      if (frame->kind == Frame::Kind::fail) throw Error("{}", frame->bytes);
    }
    if (!socket_.open()) throw Error("the world's hub (in rank 0's process or its starter) is gone");
    if (Clock::now() - beat < beat_interval(options_.liveness)) continue;
    beat = Clock::now();
    send({.kind = Frame::Kind::beat, .rank = options_.rank});
  }
  throw Error("the ranks did not meet within {:.0f} s", in_seconds(options_.meeting));
}

void Lifeline::start(LifelineEvents events) {
  events_ = std::move(events);
  heard_ = Clock::now();
  thread_ = std::thread([this] {
    serve();
    end();
  });
}

void Lifeline::fail(const std::string& why) {
  send({.kind = Frame::Kind::fail, .rank = options_.rank, .bytes = why});
}

void Lifeline::ask_for_pages() { send({.kind = Frame::Kind::ask, .rank = options_.rank}); }

std::map<int, std::string> Lifeline::take_pages() {
  const std::lock_guard lock(mutex_);
  return std::exchange(pages_, {});
}

void Lifeline::leave() {
  send({.kind = Frame::Kind::leave, .rank = options_.rank});
  const std::lock_guard lock(mutex_);
  left_ = true;
}

bool Lifeline::wait_for_the_others() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return all_left_ || ended_; });
  return all_left_;
}

void Lifeline::send(Frame frame) {
  const std::lock_guard lock(mutex_);
  socket_.send(frame);
}

void Lifeline::serve() {
  auto beat = Clock::now() - options_.liveness;
  while (!stop_) {
    wait_a_moment(kTick);
    std::vector<Frame> frames;
    bool open = true;
    bool left = false;
    {
      const std::lock_guard lock(mutex_);
      socket_.flush();
      socket_.receive();
      while (std::optional<Frame> frame = socket_.next()) frames.push_back(std::move(*frame));
      open = socket_.open();
      if (!open) socket_.end_sending();  // so that the hub knows that all has arrived
      left = left_;
    }
    if (!frames.empty()) heard_ = Clock::now();
    for (Frame& frame : frames) handle(std::move(frame));
    if (!open) {
      if (!left && !failed_)
        failed(0, "the connection to rank 0's process (or the ranks' starter) broke off: it is gone");
      return;
    }
    if (Clock::now() - heard_ > options_.liveness) {
      failed(0,
             format("rank 0's process (or the ranks' starter) has given no sign of life for {:.1f} s: it is "
                    "stopped, or its machine is gone",
                    in_seconds(Clock::now() - heard_)));
    }
    if (Clock::now() - beat < beat_interval(options_.liveness)) continue;
    beat = Clock::now();
    send({.kind = Frame::Kind::beat, .rank = options_.rank});
  }
}

void Lifeline::handle(Frame frame) {
  if (frame.kind == Frame::Kind::fail) {
    failed(frame.rank, frame.bytes);
  } else if (frame.kind == Frame::Kind::ask && frame.rank != options_.rank && events_.page) {
    send({.kind = Frame::Kind::page, .rank = options_.rank, .to = frame.rank, .bytes = events_.page()});
  } else if (frame.kind == Frame::Kind::page) {
    const std::lock_guard lock(mutex_);
    pages_[frame.rank] = std::move(frame.bytes);
  } else if (frame.kind == Frame::Kind::leave) {
    const std::lock_guard lock(mutex_);
    all_left_ = true;
    changed_.notify_all();
  }
}

void Lifeline::failed(int rank, const std::string& why) {
  if (std::exchange(failed_, true)) return;
  if (events_.on_failure) events_.on_failure(rank, why);
  end();
}

void Lifeline::end() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  changed_.notify_all();
}

void Lifeline::wait_a_moment(std::chrono::milliseconds limit) {
  pollfd fd{.fd = socket_.fd(), .events = POLLIN, .revents = 0};
  poll(&fd, 1, static_cast<int>(limit.count()));
}

}  // namespace phalanx
