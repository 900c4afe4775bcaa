#include <nccl.h>

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "phalanx/comm/collectives.h"
#include "phalanx/comm/transport/nccl.h"
#include "phalanx/comm/transport/nccl_channels.h"
#include "phalanx/tensor/stream_wait.h"

namespace phalanx {
namespace {

using nccl::Channel;
using nccl::Channels;
using nccl::check_nccl;
using nccl::Launch;
using Calls = std::function<void(ncclComm*, CUstream_st*)>;

ncclDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return ncclFloat64;
    case DType::f32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::f16:
      return ncclFloat16;
    case DType::i64:
      return ncclInt64;
    case DType::i32:
      return ncclInt32;
    case DType::i8:
    case DType::u8:
    case DType::f8e4m3:
    case DType::f8e5m2:
      break;
  }
  PHX_CHECK(false, "a reduction of {} by NCCL", dtype_name(dtype));
}

ncclRedOp_t operator_of(Reduce reduce) {
  switch (reduce) {
    case Reduce::sum:
      return ncclSum;
    case Reduce::max:
      return ncclMax;
    case Reduce::min:
      return ncclMin;
  }
  PHX_CHECK(false, "a reduction that NCCL does not know");
}

// One group of calls of NCCL's, which ends however they do.
class NcclGroup {
 public:
  NcclGroup() { check_nccl(ncclGroupStart(), "ncclGroupStart"); }
  ~NcclGroup() {
    if (!ended_) (void)ncclGroupEnd();
  }
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;
  void end() {
    ended_ = true;
    check_nccl(ncclGroupEnd(), "ncclGroupEnd");
  }

 private:
  bool ended_ = false;
};

// Bytes that go to a member of the channel or come from there.
struct Piece {
  P2P::Kind kind;
  int member;
  std::byte* at;
  size_t bytes;
};

// Messages of one sender to one receiver match in their order.
Calls calls_of(std::vector<Piece> pieces) {
  return [pieces = std::move(pieces)](ncclComm* communicator, CUstream_st* stream) {
    NcclGroup group;
    for (const Piece& p : pieces) {
      if (p.bytes == 0) continue;
      if (p.kind == P2P::Kind::send) {
        check_nccl(ncclSend(p.at, p.bytes, ncclUint8, p.member, communicator, stream), "ncclSend");
      } else {
        check_nccl(ncclRecv(p.at, p.bytes, ncclUint8, p.member, communicator, stream), "ncclRecv");
      }
    }
    group.end();
  };
}

// A launch on its way into its channel's stream.
class Queued final : public CommWaitable {
 public:
  Queued(const Channel& channel, std::shared_ptr<Launch> launch)
      : channel_(channel), launch_(std::move(launch)) {}
  bool poll() override { return launch_->state == Launch::State::queued; }
  PooledVector<int> missing() const override {
    PooledVector<int> ranks;
    const nccl::Members& all = channel_.members();
    for (const int r : all.ranks) {
      if (r != all.ranks[static_cast<size_t>(all.rank)]) ranks.push_back(r);
    }
    return ranks;
  }

 private:
  const Channel& channel_;
  std::shared_ptr<Launch> launch_;
};

// An exchange that was posted: what its host carries, and what its GPU does.
struct Posted {
  std::vector<size_t> host_parts;  // of the exchange
  std::optional<Exchange> host;
  struct WithPeer {
    std::vector<size_t> parts;
    std::shared_ptr<Launch> launch;
  };
  std::map<int, WithPeer> on_gpu;  // by rank of the world
};

class NcclTransport final : public Transport {
 public:
  NcclTransport(std::unique_ptr<Transport> host, Device device, const Deadlines& deadlines)
      : host_(std::move(host)),
        channels_(*host_, device, deadlines),
        waits_([this](std::chrono::nanoseconds waited) { channels_.look(waited); }) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  FailureBoard& failures() override { return host_->failures(); }
  RankPage* page(int rank) override { return host_->page(rank); }
  bool crowded() const override { return host_->crowded(); }
  int rank_on_host() const override { return host_->rank_on_host(); }
  void wake_all() noexcept override { host_->wake_all(); }
  void progress() override {
    host_->progress();
    channels_.move();
  }
  // NCCL's threads ring for nobody.
  void idle(FunctionRef<bool()> look_again, std::chrono::microseconds limit) override {
    constexpr std::chrono::microseconds kSoon(20);
    const auto look = [&] { return channels_.move() || look_again(); };
    host_->idle(look, channels_.in_motion() ? std::min(limit, kSoon) : limit);
  }

  std::unique_ptr<GroupLink> open_group(const GroupInfo& group) override {
    PHX_CHECK(host_->open_group(group) == nullptr, "the host's transport keeps something for group {}",
              group.name);
    return channels_.open(group);
  }

  void post(Exchange& exchange) override {
    exchanges_.erase(&exchange);
    Posted& posted = exchanges_[&exchange];
    PooledVector<P2P> messages;
    for (size_t i = 0; i < exchange.parts.size(); ++i) {
      const P2P& m = exchange.parts[i].message;
      if (!m.buffer.on_cuda()) {
        posted.host_parts.push_back(i);
        messages.push_back(m);
      } else if (m.buffer.bytes() > 0) {
        posted.on_gpu[m.peer].parts.push_back(i);
      } else {
        exchange.parts[i].done = true;
      }
    }
    if (!messages.empty()) {
      posted.host.emplace(*host_, std::move(messages), exchange.tag, exchange.fingerprint);
    }
    for (auto& [peer, with] : posted.on_gpu) with.launch = launch_messages(exchange, peer, with.parts);
  }

  bool poll(Exchange& exchange) override {
    const auto found = exchanges_.find(&exchange);
    if (found == exchanges_.end()) return true;
    const auto finish = [&exchange](const std::vector<size_t>& parts) {
      for (const size_t i : parts) exchange.parts[i].done = true;
    };
    Posted& posted = found->second;
    bool all = true;
    if (posted.host && !posted.host->poll()) {
      all = false;
    } else {
      finish(posted.host_parts);
    }
    for (const auto& [peer, with] : posted.on_gpu) {
      if (with.launch->state == Launch::State::queued) {
        finish(with.parts);
      } else {
        all = false;
      }
    }
    if (!all) return false;
    // Other operations than Group::exchange may use what came before they finish.
    if (exchange.fingerprint.kind != Fingerprint::Kind::exchange) {
      for (const auto& [peer, with] : posted.on_gpu) current_stream().wait(with.launch->done);
    }
    exchanges_.erase(found);
    return true;
  }

  // What the GPU does with the tensors goes on; the launches hold them.
  void abandon(Exchange& exchange) noexcept override { exchanges_.erase(&exchange); }

  Task<> all_reduce(Call call, Tensor x, Reduce reduce) override {
    if (!is_ours(call, x)) return Transport::all_reduce(call, std::move(x), reduce);
    count(call);
    auto calls = [at = x.address(), n = static_cast<size_t>(x.numel()), type = type_of(x.dtype()),
                  op = operator_of(reduce)](ncclComm* communicator, CUstream_st* stream) {
      check_nccl(ncclAllReduce(at, at, n, type, op, communicator, stream), "ncclAllReduce");
    };
    return run(call, {std::move(x)}, std::move(calls));
  }

  Task<> reduce_scatter(Call call, Tensor x, Tensor out, Reduce reduce) override {
    if (!is_ours(call, x)) return Transport::reduce_scatter(call, std::move(x), std::move(out), reduce);
    count(call);
    auto calls = [from = x.address(), to = out.address(), n = static_cast<size_t>(out.numel()),
                  type = type_of(x.dtype()),
                  op = operator_of(reduce)](ncclComm* communicator, CUstream_st* stream) {
      check_nccl(ncclReduceScatter(from, to, n, type, op, communicator, stream), "ncclReduceScatter");
    };
    return run(call, {std::move(x), std::move(out)}, std::move(calls));
  }

  Task<> all_gather(Call call, Tensor x, Tensor out) override {
    if (!is_ours(call, x)) return Transport::all_gather(call, std::move(x), std::move(out));
    count(call);
    auto calls = [from = x.address(), to = out.address(), n = x.bytes()](ncclComm* communicator,
                                                                         CUstream_st* stream) {
      check_nccl(ncclAllGather(from, to, n, ncclUint8, communicator, stream), "ncclAllGather");
    };
    return run(call, {std::move(x), std::move(out)}, std::move(calls));
  }

  // A rank without rows to send or to receive takes part: the others do not know of it.
  Task<> all_to_all(Call call, Tensor x, Tensor out, PooledVector<int64_t> send_rows,
                    PooledVector<int64_t> recv_rows) override {
    if (call.size() == 1 || !x.on_cuda()) {
      return Transport::all_to_all(call, std::move(x), std::move(out), std::move(send_rows),
                                   std::move(recv_rows));
    }
    const auto row_bytes = static_cast<size_t>(x.row_size()) * dtype_size(x.dtype());
    const auto me = static_cast<size_t>(call.rank());
    const auto bytes = [row_bytes](int64_t rows) { return static_cast<size_t>(rows) * row_bytes; };
    call.count(static_cast<int64_t>(bytes(x.rows() - send_rows[me])),
               static_cast<int64_t>(bytes(out.rows() - recv_rows[me])));
    std::vector<Piece> pieces;
    std::byte* from = x.address();
    std::byte* to = out.address();
    for (int r = 0; r < call.size(); ++r) {
      const auto i = static_cast<size_t>(r);
      pieces.push_back({P2P::Kind::send, r, from, bytes(send_rows[i])});
      pieces.push_back({P2P::Kind::recv, r, to, bytes(recv_rows[i])});
      from += pieces[2 * i].bytes;
      to += pieces[2 * i + 1].bytes;
    }
    return run(call, {std::move(x), std::move(out)}, calls_of(std::move(pieces)));
  }

  Task<> broadcast(Call call, Tensor x, int root) override {
    if (!is_ours(call, x)) return Transport::broadcast(call, std::move(x), root);
    count(call);
    auto calls = [at = x.address(), n = x.bytes(), root](ncclComm* communicator, CUstream_st* stream) {
      check_nccl(ncclBroadcast(at, at, n, ncclUint8, root, communicator, stream), "ncclBroadcast");
    };
    return run(call, {std::move(x)}, std::move(calls));
  }

  void taken(const Call& call) override { channels_.taken(call); }

  bool shares_memory(const GroupInfo& group) const override { return host_->shares_memory(group); }
  Tensor shareable(const GroupInfo& group, Tensor x) const override {
    return host_->shareable(group, std::move(x));
  }
  Task<> share(Call call, Tensor x, std::span<Tensor> peers) override {
    return host_->share(call, std::move(x), peers);
  }

 private:
  // Of an empty tensor nothing is moved: the default does that without NCCL.
  static bool is_ours(const Call& call, const Tensor& x) {
    return call.size() > 1 && x.on_cuda() && x.bytes() > 0;
  }

  // As if by the algorithms of collectives.h.
  static void count(const Call& call) {
    const collectives::Cost cost = collectives::cost(call.fingerprint(), call.size(), call.rank());
    call.count(cost.sent, cost.received);
  }

  Task<> run(Call call, std::vector<Tensor> tensors, Calls calls) {
    Channel& channel = channels_.of_group(call.group().id);
    auto launch = std::make_shared<Launch>();
    launch->sequence = call.sequence();
    launch->fingerprint = call.fingerprint();
    launch->calls = std::move(calls);
    launch->tensors = std::move(tensors);
    channels_.add(channel, launch);
    Queued queued(channel, std::move(launch));
    co_await Suspend(queued);
  }

  std::shared_ptr<Launch> launch_messages(const Exchange& exchange, int peer,
                                          const std::vector<size_t>& parts) {
    Channel& channel = channels_.of_pair(exchange.tag.group, peer);
    const auto launch = std::make_shared<Launch>();
    launch->sequence = exchange.tag.sequence;
    launch->fingerprint = exchange.fingerprint;
    const std::vector<int>& ranks = channel.members().ranks;
    const auto member = static_cast<int>(std::ranges::find(ranks, peer) - ranks.begin());
    std::vector<Piece> pieces;
    for (const size_t i : parts) {
      const P2P& m = exchange.parts[i].message;
      pieces.push_back({m.kind, member, m.buffer.address(), m.buffer.bytes()});
      launch->tensors.push_back(m.buffer);
    }
    launch->calls = calls_of(std::move(pieces));
    channels_.add(channel, launch);
    return launch;
  }

  std::unique_ptr<Transport> host_;
  Channels channels_;
  StreamWaitScope waits_;
  std::map<const Exchange*, Posted> exchanges_;
};

}  // namespace

std::unique_ptr<Transport> nccl_transport(std::unique_ptr<Transport> host, Device device,
                                          const Deadlines& deadlines) {
  return std::make_unique<NcclTransport>(std::move(host), device, deadlines);
}

WrapTransport over_nccl(const Deadlines& deadlines) {
  return [deadlines](std::unique_ptr<Transport> host) {
    const Device device = device_of_rank(Device::Kind::cuda, host->rank_on_host());
    return nccl_transport(std::move(host), device, deadlines);
  };
}

}  // namespace phalanx
