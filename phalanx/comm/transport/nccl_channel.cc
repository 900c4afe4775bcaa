#include "phalanx/comm/transport/nccl_channel.h"

#include <nccl.h>

#include <cstring>

#include "phalanx/tensor/timeline.h"

namespace phalanx::nccl {
namespace {

constexpr uint64_t kMeeting = 0x6e63636c2d69643au;  // beside a group's id: of the names of its communicators

const char* text_of(ncclResult_t code) { return ncclGetErrorString(code); }

}  // namespace

void check_nccl(int code, const char* call) {
  if (code == ncclSuccess || code == ncclInProgress) return;
  throw CommError(format("{}: {}", call, text_of(static_cast<ncclResult_t>(code))));
}

Channel::Channel(Transport& host, Members members, Device device)
    : host_(host), members_(std::move(members)), device_(device) {
  PHX_CHECK(members_.ranks.size() > 1, "a channel of {} ranks", members_.ranks.size());
}

Channel::~Channel() { abort(); }

std::string Channel::text(const Launch& launch) const {
  return format("{} #{} of group {}", launch.fingerprint.text(), launch.sequence, members_.group_name);
}

void Channel::add(std::shared_ptr<Launch> launch) {
  constexpr size_t kMany = 64;
  if (unfinished_.size() > kMany) running();
  waiting_.push_back(std::move(launch));
  move();
}

bool Channel::move() {
  if (!error_.empty() || state_ == State::closing || state_ == State::closed) return false;
  bool moved = false;
  try {
    if (!waiting_.empty() && state_ != State::ready) moved = begin();
    while (state_ == State::ready && !waiting_.empty()) {
      Launch& launch = *waiting_.front();
      if (launch.state == Launch::State::waiting) {
        stream_->wait(launch.ready);
        launch.state = Launch::State::begun;
        launch.calls(communicator_, stream_->native());
      }
      if (in_progress()) return moved;
      launch.done.record(*stream_);
      if (cuda::Timeline* const traced = cuda::timeline()) traced->mark(*stream_, text(launch));
      launch.state = Launch::State::queued;
      launch.calls = nullptr;
      unfinished_.push_back(std::move(waiting_.front()));
      waiting_.pop_front();
      moved = true;
    }
  } catch (const std::exception& e) {
    fail(e.what());
  }
  return moved;
}

// From the first launch until the communicator is ready; true when it has come a step further.
bool Channel::begin() {
  switch (state_) {
    case State::unused:
      stream_.emplace(device_);
      return meet();
    case State::meeting: {
      if (!meeting_->poll()) return false;
      meeting_.reset();
      ncclUniqueId id;
      std::memcpy(&id, name_.raw(), sizeof id);
      ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
      config.blocking = 0;
      state_ = State::beginning;
      check_nccl(ncclCommInitRankConfig(&communicator_, static_cast<int>(members_.ranks.size()), id,
                                        members_.rank, &config),
                 "ncclCommInitRankConfig");
      return true;
    }
    case State::beginning:
      if (in_progress()) return false;
      state_ = State::ready;
      return true;
    case State::ready:
    case State::closing:
    case State::closed:
      break;
  }
  return false;
}

// The first member makes the communicator's name and sends it to the others.
bool Channel::meet() {
  name_ = Tensor::zeros({static_cast<int64_t>(sizeof(ncclUniqueId))}, DType::u8);
  PooledVector<P2P> messages;
  if (members_.rank == 0) {
    ncclUniqueId id;
    check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
    std::memcpy(name_.raw(), &id, sizeof id);
    for (size_t r = 1; r < members_.ranks.size(); ++r) messages.push_back(send_to(members_.ranks[r], name_));
  } else {
    messages.push_back(recv_from(members_.ranks.front(), name_));
  }
  const Tag tag{.group = members_.group ^ kMeeting, .sequence = members_.number};
  const Fingerprint fingerprint{
      .kind = Fingerprint::Kind::broadcast, .dtype = DType::u8, .numel = name_.numel()};
  meeting_.emplace(host_, std::move(messages), tag, fingerprint);
  state_ = State::meeting;
  return true;
}

// Whether NCCL's own thread is at work. Throws what it has found wrong.
bool Channel::in_progress() {
  ncclResult_t status = ncclSuccess;
  check_nccl(ncclCommGetAsyncError(communicator_, &status), "ncclCommGetAsyncError");
  if (status == ncclInProgress) return true;
  if (status != ncclSuccess) {
    throw CommError(format("{} ({})", text_of(status), ncclGetLastError(communicator_)));
  }
  return false;
}

void Channel::fail(const std::string& what) {
  if (error_.empty()) {
    error_ = format("NCCL: {}{}", what, waiting_.empty() ? "" : ", in " + text(*waiting_.front()));
  }
}

const std::string& Channel::error() {
  if (error_.empty() && communicator_ && state_ != State::closed) {
    try {
      in_progress();
    } catch (const std::exception& e) {
      fail(e.what());
    }
  }
  return error_;
}

bool Channel::running() {
  while (!unfinished_.empty() && unfinished_.front()->done.passed()) unfinished_.pop_front();
  return !unfinished_.empty();
}

const Launch* Channel::first_unfinished() {
  if (running()) return unfinished_.front().get();
  return waiting_.empty() ? nullptr : waiting_.front().get();
}

bool Channel::close(bool free) {
  if (state_ == State::unused) state_ = State::closed;
  if (state_ == State::closed) return true;
  if (!error_.empty()) return false;
  try {
    if (state_ != State::closing) {
      move();
      if (first_unfinished() || state_ != State::ready) return false;
      state_ = State::closing;
      check_nccl(ncclCommFinalize(communicator_), "ncclCommFinalize");
    }
    if (in_progress()) return false;
    state_ = State::closed;
    ncclComm* const communicator = std::exchange(communicator_, nullptr);
    if (free) check_nccl(ncclCommDestroy(communicator), "ncclCommDestroy");
  } catch (const std::exception& e) {
    fail(e.what());
  }
  return state_ == State::closed;
}

void Channel::abort() noexcept {
  state_ = State::closed;
  if (communicator_) (void)ncclCommAbort(std::exchange(communicator_, nullptr));
}

}  // namespace phalanx::nccl
