#include "phalanx/comm/lifeline/hub.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "phalanx/base/error.h"
#include "phalanx/comm/lifeline/beat.h"

namespace phalanx {
namespace {

constexpr std::chrono::milliseconds kTick(20);      // at least so often the hub looks around
constexpr std::chrono::milliseconds kLinger(1000);  // after the last word, for it to arrive

std::string list(const std::vector<int>& ranks) {
  std::string s = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) s += format("{}{}", i == 0 ? "" : ", ", ranks[i]);
  return s;
}

}  // namespace

Hub::Hub(HubOptions options) : options_(std::move(options)), thread_([this] { serve(); }) {}

Hub::~Hub() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
  close(options_.listener);
}

void Hub::finish() { thread_.join(); }

void Hub::serve() {
  while (!stop_ && !over()) {
    wait_for_events();
    accept_all();
    for (Connection& c : connections_) take_frames(c);
    share_when_all_have();
    look_for_the_dead();
    if (!last_word_ && std::ranges::count(connections_, true, &Connection::left) == options_.ranks) {
      close_with({.kind = Frame::Kind::leave});
    }
    std::erase_if(connections_, [](const Connection& c) { return !c.socket.open() && c.rank < 0; });
    if (last_word_ || Clock::now() - beat_ < beat_interval(options_.liveness)) continue;
    beat_ = Clock::now();
    send_to_all({.kind = Frame::Kind::beat});
  }
  connections_.clear();
}

// The hub stays a moment until its ranks have come and closed: one that comes to a world that has failed is
// to know why, and a connection that closes with bytes unread would take the last word back. Not for the rank
// that failed: it may be stopped.
bool Hub::over() const {
  if (!last_word_) return false;
  const bool all_closed = std::ranges::none_of(connections_, [this](const Connection& c) {
    return c.socket.open() && !(failed_ && c.rank == last_word_->rank);
  });
  return (all_closed && absent().empty()) || Clock::now() - closing_since_ > kLinger;
}

void Hub::close_with(const Frame& last_word) {
  last_word_ = last_word;
  closing_since_ = Clock::now();
  for (Connection& c : connections_) {
    if (c.rank >= 0) say_last_word(c);
  }
}

void Hub::say_last_word(Connection& c) const {
  if (!c.socket.open()) return;
  c.socket.send(*last_word_);
  if (!c.socket.wants_to_write()) c.socket.end_sending();
}

void Hub::wait_for_events() {
  std::vector<pollfd> fds = {{.fd = options_.listener, .events = POLLIN, .revents = 0}};
  for (const Connection& c : connections_) {
    if (!c.socket.open()) continue;
    const auto events = static_cast<short>(c.socket.wants_to_write() ? POLLIN | POLLOUT : POLLIN);
    fds.push_back({.fd = c.socket.fd(), .events = events, .revents = 0});
  }
  poll(fds.data(), fds.size(), static_cast<int>(kTick.count()));
}

void Hub::accept_all() {
  pollfd listener{.fd = options_.listener, .events = POLLIN, .revents = 0};
  while (poll(&listener, 1, 0) == 1) {
    const int fd = accept4(options_.listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) return;
    connections_.emplace_back(fd);
  }
}

void Hub::take_frames(Connection& c) {
  c.socket.flush();
  c.socket.receive();
  try {
    while (std::optional<Frame> frame = c.socket.next()) handle(c, std::move(*frame));
  } catch (const Error&) {  // a stranger: it is not listened to
    c.socket.end_sending();
    c.rank = -1;
  }
}

void Hub::handle(Connection& c, Frame frame) {
  c.heard = Clock::now();
  if (frame.kind == Frame::Kind::hello) {
    c.rank = frame.rank;
    return welcome(c, frame.bytes);
  }
  if (c.rank < 0) throw Error("a frame before its hello");
  switch (frame.kind) {
    case Frame::Kind::share:
      c.shared = std::move(frame.bytes);
      break;
    case Frame::Kind::fail:
      fail(frame.rank, frame.bytes);
      break;
    case Frame::Kind::ask:
      send_to_all(frame);
      break;
    case Frame::Kind::page:
      for (Connection& other : connections_) {
        if (other.rank == frame.to) other.socket.send(frame);
      }
      break;
    case Frame::Kind::leave:
      c.left = true;
      break;
    case Frame::Kind::hello:
    case Frame::Kind::beat:
      break;
  }
}

// bytes: the world's key, and how to call the process.
void Hub::welcome(Connection& c, const std::string& bytes) {
  const std::vector<std::string> texts = unpack_texts(bytes);
  if (texts.size() != 2 || texts[0] != options_.key) throw Error("a rank of another world");
  c.process = texts[1];
  if (last_word_) return say_last_word(c);
  const auto same = std::ranges::count(connections_, c.rank, &Connection::rank);
  if (c.rank < 0 || c.rank >= options_.ranks) {
    fail(c.rank, format("rank {} ({}) came to a world of {} ranks", c.rank, c.process, options_.ranks));
  } else if (same > 1) {
    fail(c.rank, format("two processes say that they are rank {} of {}; the second is {}", c.rank,
                        options_.ranks, c.process));
  }
}

void Hub::share_when_all_have() {
  std::vector<std::string> texts(static_cast<size_t>(options_.ranks));
  int given = 0;
  for (const Connection& c : connections_) {
    if (!c.shared || c.rank >= options_.ranks) continue;
    texts[static_cast<size_t>(c.rank)] = *c.shared;
    ++given;
  }
  if (given != options_.ranks) return;
  for (Connection& c : connections_) c.shared.reset();
  send_to_all({.kind = Frame::Kind::share, .bytes = pack_texts(texts)});
}

std::vector<int> Hub::absent() const {
  std::vector<int> ranks;
  for (int r = 0; r < options_.ranks; ++r) {
    if (std::ranges::find(connections_, r, &Connection::rank) == connections_.end()) ranks.push_back(r);
  }
  return ranks;
}

void Hub::look_for_the_dead() {
  const auto now = Clock::now();
  for (const Connection& c : connections_) {
    if (c.rank < 0 || c.left || failed_) continue;
    if (!c.socket.open()) {
      fail(c.rank, format("rank {} ({}) is gone: its process ended without a word; was it killed?", c.rank,
                          c.process));
    } else if (now - c.heard > options_.liveness) {
      fail(c.rank, format("rank {} ({}) has given no sign of life for {:.1f} s: its process is stopped, or "
                          "its machine is gone",
                          c.rank, c.process, in_seconds(now - c.heard)));
    }
  }
  if (failed_ || now - began_ < options_.meeting) return;
  const std::vector<int> missing = absent();
  if (missing.empty()) return;
  fail(missing.front(), format("{} of {} never came within {:.0f} s", list(missing), options_.ranks,
                               in_seconds(options_.meeting)));
}

void Hub::fail(int rank, const std::string& why) {
  if (failed_) return;
  failed_ = true;
  close_with({.kind = Frame::Kind::fail, .rank = rank, .bytes = why});
}

void Hub::send_to_all(const Frame& frame) {
  for (Connection& c : connections_) {
    if (c.rank >= 0 && c.socket.open()) c.socket.send(frame);
  }
}

}  // namespace phalanx
