// Framed messages over a TCP connection that never blocks its user.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace phalanx {

/// One message between a rank and the hub (hub.h).
struct Frame {
  enum class Kind : uint32_t {
    hello,  ///< rank → hub: `rank` is here; bytes: how messages call its process
    share,  ///< rank → hub: a text for all; hub → ranks: all texts, packed
    beat,   ///< both ways: still alive
    fail,   ///< rank → hub and hub → ranks: `rank` says why the world has failed
    ask,    ///< rank → hub → ranks: rank `rank` wants to see everybody's page
    page,   ///< rank → hub → rank `to`: the page of rank `rank`
    leave   ///< rank → hub: this rank needs nothing more; hub → ranks: all have said so
  };
  Kind kind = Kind::beat;
  int32_t rank = 0;
  int32_t to = 0;
  std::string bytes = {};
};

/// Several texts in one, and back. Error: bytes that pack_texts has not made.
std::string pack_texts(const std::vector<std::string>& texts);
std::vector<std::string> unpack_texts(const std::string& bytes);

/// One end of a connection. Not thread-safe.
class FrameSocket {
 public:
  /// Takes over a connected socket.
  explicit FrameSocket(int fd);
  FrameSocket(FrameSocket&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)),
        open_(other.open_),
        out_(std::move(other.out_)),
        in_(std::move(other.in_)) {}
  FrameSocket& operator=(FrameSocket&&) = delete;
  ~FrameSocket();

  int fd() const { return fd_; }
  /// False once the other end has closed or broken off.
  bool open() const { return open_; }
  /// Sends, or keeps what does not fit until the next flush.
  void send(const Frame& frame);
  void flush();
  bool wants_to_write() const { return open_ && !out_.empty(); }
  /// Takes what has arrived.
  void receive();
  /// The next whole frame, if there is one. Error: the other end does not speak this language.
  std::optional<Frame> next();
  /// Nothing more will be sent; what was sent still arrives.
  void end_sending();

 private:
  int fd_;
  bool open_ = true;
  std::string out_;
  std::string in_;
};

/// A socket that listens at `address` (empty: all of this host's) and `port` (0: a free one). Gives the
/// socket and its port. Error: the port is taken, or the address is not this host's.
std::pair<int, int> listen_at(const std::string& address, int port);

/// Connects to the first of `addresses` that answers, trying until `limit` has passed: the listener may come
/// later. Error: nobody answers.
int connect_to(const std::vector<std::string>& addresses, int port, std::chrono::milliseconds limit);

/// The addresses under which other hosts may reach this one, loopback last.
std::vector<std::string> own_addresses();

}  // namespace phalanx
