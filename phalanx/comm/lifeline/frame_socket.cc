#include "phalanx/comm/lifeline/frame_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>

#include "phalanx/base/error.h"
#include "phalanx/base/system_error.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kMagic = 0x50484c4cu;         // "PHLL"
constexpr uint64_t kMostBytes = 64ull << 20;     // of a frame: more is a stranger's
constexpr std::chrono::milliseconds kAgain(20);  // between tries to connect

struct Header {
  uint32_t magic;
  uint32_t kind;
  int32_t rank;
  int32_t to;
  uint64_t bytes;
};

struct AddressDeleter {
  void operator()(addrinfo* a) const { freeaddrinfo(a); }
};
using Addresses = std::unique_ptr<addrinfo, AddressDeleter>;

Addresses resolve(const std::string& address, int port, bool to_listen) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = to_listen ? AI_PASSIVE : 0;
  addrinfo* found = nullptr;
  const std::string service = format("{}", port);
  const int e = getaddrinfo(address.empty() ? nullptr : address.c_str(), service.c_str(), &hints, &found);
  if (e != 0) throw Error("cannot resolve the address \"{}\": {}", address, gai_strerror(e));
  return Addresses(found);
}

// A connected socket, or −1.
int try_to_connect(const addrinfo& address, std::chrono::milliseconds limit) {
  const int fd = socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  if (connect(fd, address.ai_addr, address.ai_addrlen) != 0) {
    pollfd wait{.fd = fd, .events = POLLOUT, .revents = 0};
    int error = errno;
    if (error == EINPROGRESS && poll(&wait, 1, static_cast<int>(limit.count())) == 1) {
      socklen_t n = sizeof error;
      getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &n);
    }
    if (error != 0) {
      close(fd);
      return -1;
    }
  }
  return fd;
}

}  // namespace

std::string pack_texts(const std::vector<std::string>& texts) {
  std::string packed;
  for (const std::string& t : texts) packed += format("{}:", t.size()) + t;
  return packed;
}

std::vector<std::string> unpack_texts(const std::string& bytes) {
  std::vector<std::string> texts;
  for (size_t at = 0; at < bytes.size();) {
    const size_t colon = bytes.find(':', at);
    const size_t n = colon == std::string::npos ? 0 : std::strtoull(bytes.c_str() + at, nullptr, 10);
    if (colon == std::string::npos || n > bytes.size() - colon - 1) throw Error("a packed text is broken");
    texts.push_back(bytes.substr(colon + 1, n));
    at = colon + 1 + n;
  }
  return texts;
}

FrameSocket::FrameSocket(int fd) : fd_(fd) {
  fcntl(fd_, F_SETFL, fcntl(fd_, F_GETFL) | O_NONBLOCK);
  const int on = 1;
  setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

FrameSocket::~FrameSocket() {
  if (fd_ >= 0) close(fd_);
}

void FrameSocket::send(const Frame& frame) {
  const Header h{kMagic, static_cast<uint32_t>(frame.kind), frame.rank, frame.to, frame.bytes.size()};
  std::array<char, sizeof h> raw{};
  std::memcpy(raw.data(), &h, sizeof h);
  out_.append(raw.data(), raw.size());
  out_ += frame.bytes;
  flush();
}

void FrameSocket::flush() {
  while (open_ && !out_.empty()) {
    const ssize_t n = ::send(fd_, out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      open_ = errno == EAGAIN || errno == EWOULDBLOCK;
      return;
    }
    out_.erase(0, static_cast<size_t>(n));
  }
}

void FrameSocket::receive() {
  std::array<char, 16384> buffer;
  while (open_) {
    const ssize_t n = recv(fd_, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (n <= 0) {
      open_ = false;
      return;
    }
    in_.append(buffer.data(), static_cast<size_t>(n));
  }
}

std::optional<Frame> FrameSocket::next() {
  Header h{};
  if (in_.size() < sizeof h) return std::nullopt;
  std::memcpy(&h, in_.data(), sizeof h);
  if (h.magic != kMagic || h.bytes > kMostBytes) throw Error("a stranger has connected to the ranks' port");
  if (in_.size() - sizeof h < h.bytes) return std::nullopt;
  Frame frame{static_cast<Frame::Kind>(h.kind), h.rank, h.to, in_.substr(sizeof h, h.bytes)};
  in_.erase(0, sizeof h + h.bytes);
  return frame;
}

void FrameSocket::end_sending() { shutdown(fd_, SHUT_WR); }

std::pair<int, int> listen_at(const std::string& address, int port) {
  const Addresses where = resolve(address, port, true);
  const int fd = socket(where->ai_family, where->ai_socktype | SOCK_CLOEXEC, 0);
  const int on = 1;
  if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (fd < 0 || bind(fd, where->ai_addr, where->ai_addrlen) != 0 || listen(fd, SOMAXCONN) != 0) {
    const std::string why = errno_text();
    if (fd >= 0) close(fd);
    throw Error("cannot listen at {}:{}: {}; give another port, or end the job that holds it",
                address.empty() ? std::string("*") : address, port, why);
  }
  sockaddr_in bound{};
  socklen_t n = sizeof bound;
  getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &n);
  return {fd, ntohs(bound.sin_port)};
}

int connect_to(const std::vector<std::string>& addresses, int port, std::chrono::milliseconds limit) {
  const auto end = Clock::now() + limit;
  const auto patience = std::min(limit, std::chrono::milliseconds(1000));
  do {
    for (const std::string& address : addresses) {
      const Addresses found = resolve(address, port, false);
      for (const addrinfo* a = found.get(); a; a = a->ai_next) {
        const int fd = try_to_connect(*a, patience);
        if (fd >= 0) return fd;
      }
    }
    std::this_thread::sleep_for(kAgain);
  } while (Clock::now() < end);
  std::string tried;
  for (const std::string& a : addresses) tried += format("{}{}:{}", tried.empty() ? "" : ", ", a, port);
  throw Error("rank 0 did not answer within {} s at {}: is it running, and can this host reach it?",
              static_cast<double>(limit.count()) * 1e-3, tried);
}

std::vector<std::string> own_addresses() {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return {"127.0.0.1"};
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(all, freeifaddrs);
  std::vector<std::string> addresses;
  for (const ifaddrs* a = all; a; a = a->ifa_next) {
    if (!a->ifa_addr || a->ifa_addr->sa_family != AF_INET || !(a->ifa_flags & IFF_UP)) continue;
    if (a->ifa_flags & IFF_LOOPBACK) continue;
    std::array<char, INET_ADDRSTRLEN> text{};
    const auto* in = reinterpret_cast<const sockaddr_in*>(a->ifa_addr);
    inet_ntop(AF_INET, &in->sin_addr, text.data(), text.size());
    addresses.emplace_back(text.data());
  }
  addresses.emplace_back("127.0.0.1");
  return addresses;
}

}  // namespace phalanx
