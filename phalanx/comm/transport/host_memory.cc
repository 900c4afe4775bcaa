#include "phalanx/comm/transport/host_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "phalanx/base/pooled.h"

namespace phalanx {

// Where a tensor lies, as its owner tells it.
struct HostMemory::Place {
  uint64_t region = 0;  // as in FilePlace
  uint64_t region_bytes = 0;
  uint64_t storage = 0;  // of the block, in the region
  uint64_t data = 0;     // of the first element, in the region
  std::array<int64_t, Shape::kMaxRank> extents{};
  int32_t dimensions = 0;
  DType dtype = DType::u8;
  bool defined = false;
};

namespace {

// A tensor's memory in another process.
struct Borrowed final : Storage, Pooled<Borrowed> {
  std::atomic<int64_t>* lent = nullptr;  // its owner's count
};

}  // namespace

// Another rank's file, and what of it is mapped here. Lives as long as its rank's HostMemory and every tensor
// over it.
class PeerMemory final : public Allocator {
 public:
  explicit PeerMemory(std::unique_ptr<MemoryFile> file) : file_(std::move(file)) {}
  ~PeerMemory() override {
    for (const Region& r : regions_) munmap(r.memory.data(), r.memory.size());
  }
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  // The address of a region, which is mapped when it is first asked for.
  std::byte* region(size_t offset, size_t bytes) {
    for (const Region& r : regions_) {
      if (r.offset == offset) return r.memory.data();
    }
    regions_.reserve(regions_.size() + 1);
    regions_.push_back({.offset = offset, .memory = file_->map(offset, bytes)});
    return regions_.back().memory.data();
  }

  // One user's view of a block.
  Storage* borrow(Storage& block, std::byte* data) {
    auto borrowed = std::make_unique<Borrowed>();
    borrowed->data = data;
    borrowed->capacity = block.capacity;
    borrowed->users.store(1, std::memory_order_relaxed);
    borrowed->home = this;
    borrowed->lent = &block.lent;
    owners_.fetch_add(1, std::memory_order_relaxed);
    return borrowed.release();  // it goes with its last user here
  }

  Storage* allocate(size_t) override {
    PHX_CHECK(false, "another process's memory gives none");
    return nullptr;
  }
  void release(Storage* storage) noexcept override {
    const std::unique_ptr<Borrowed> borrowed(static_cast<Borrowed*>(storage));
    borrowed->lent->fetch_sub(1, std::memory_order_acq_rel);
    drop_owner();
  }
  MemoryStats stats() const override { return {}; }
  void reset_peak() override {}

  void drop_owner() noexcept {
    if (owners_.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    const std::unique_ptr<PeerMemory> none_is_left(this);
  }

 private:
  struct Region {
    size_t offset;
    std::span<std::byte> memory;
  };

  std::unique_ptr<MemoryFile> file_;
  std::vector<Region> regions_;
  std::atomic<int64_t> owners_{1};
};

void HostMemory::Release::operator()(PeerMemory* peer) const noexcept { peer->drop_owner(); }

HostMemory::HostMemory(int rank, int ranks)
    : rank_(rank),
      file_(ranks > 1 ? MemoryFile::create() : nullptr),
      peers_(static_cast<size_t>(ranks)),
      reaches_(static_cast<size_t>(ranks), std::vector<bool>(static_cast<size_t>(ranks), false)) {}

HostMemory::~HostMemory() = default;

std::vector<std::string> HostMemory::meet(Lifeline& lifeline, const std::string& text) {
  std::vector<std::string> texts = lifeline.share(pack_texts({text, file_ ? file_->address() : ""}));
  std::vector<std::string> reached;  // ranks
  for (size_t r = 0; r < texts.size(); ++r) {
    std::vector<std::string> said = unpack_texts(texts[r]);
    texts[r] = said[0];
    if (static_cast<int>(r) == rank_) continue;
    if (auto file = MemoryFile::open(said[1])) {
      peers_[r].reset(std::make_unique<PeerMemory>(std::move(file)).release());
      reached.push_back(format("{}", r));
    }
  }
  // When this is over all have opened what they can: nobody looks for this rank's file any more.
  const std::vector<std::string> all = lifeline.share(pack_texts(reached));
  bool alone = true;
  for (size_t a = 0; a < all.size(); ++a) {
    for (const std::string& b : unpack_texts(all[a])) {
      const int to = std::stoi(b);
      reaches_[a][static_cast<size_t>(to)] = true;
      alone = alone && to != rank_;
    }
  }
  if (alone) file_.reset();
  of_allocator_ = file_.get();
  scope_ = std::make_unique<AllocatorScope>(std::move(file_));
  allocator_ = &cpu_allocator();
  return texts;
}

bool HostMemory::shared(const GroupInfo& group) const {
  return std::ranges::all_of(group.members, [&](int a) {
    return std::ranges::all_of(group.members, [&](int b) {
      return a == b || reaches_[static_cast<size_t>(a)][static_cast<size_t>(b)];
    });
  });
}

bool HostMemory::own(const Tensor& x) const {
  const auto place = x.storage()->home->place(*x.storage());
  return place && place->file == of_allocator_;
}

Tensor HostMemory::shareable(const GroupInfo& group, Tensor x) const {
  if (group.size() == 1 || !x.defined() || own(x)) return x;
  const Tensor copy = Tensor::from(*allocator_, x.shape(), x.dtype());
  copy_into(copy, x);
  return copy;
}

// Counts `users` more of x's block.
HostMemory::Place HostMemory::lend(const Tensor& x, int users) const {
  if (!x.defined()) return {};
  PHX_CHECK(own(x), "share of a tensor that lies in no memory of this rank's: Group::shareable copies it");
  Storage& block = *x.storage();
  const FilePlace at = block.home->place(block).value();
  block.lent.fetch_add(users, std::memory_order_relaxed);
  Place place = {.region = at.region, .region_bytes = at.region_bytes, .storage = at.offset};
  place.data = at.offset + static_cast<size_t>(x.raw() - reinterpret_cast<std::byte*>(&block));
  place.dimensions = x.shape().rank();
  std::ranges::copy(x.shape().extents(), place.extents.begin());
  place.dtype = x.dtype();
  place.defined = true;
  return place;
}

Task<> HostMemory::share(Call call, Tensor x, std::span<Tensor> peers) {
  if (call.size() == 1) {
    peers[0] = std::move(x);
    co_return;
  }
  static_assert(sizeof(Place) == 80);
  const GroupInfo& group = call.group();
  const Tensor places = Tensor::from(*allocator_, {group.size(), sizeof(Place)}, DType::u8);
  const Place mine = lend(x, group.size() - 1);
  const Tensor own_place = places.slice(group.rank, group.rank + 1);
  std::memcpy(own_place.raw(), &mine, sizeof mine);
  PooledVector<P2P> messages;
  for (int r = 0; r < group.size(); ++r) {
    if (r == group.rank) continue;
    const int peer = group.members[static_cast<size_t>(r)];
    messages.push_back(send_to(peer, own_place));
    messages.push_back(recv_from(peer, places.slice(r, r + 1)));
  }
  const Tag tag{.group = group.id, .sequence = call.sequence()};
  Exchange exchange(call.transport(), std::move(messages), tag, call.fingerprint());
  co_await Suspend(exchange);
  for (int r = 0; r < group.size(); ++r) {
    Tensor& peer = peers[static_cast<size_t>(r)];
    peer = r == group.rank ? x : Tensor();
    if (r == group.rank) continue;
    Place place;
    std::memcpy(&place, places.slice(r, r + 1).raw(), sizeof place);
    if (!place.defined) continue;
    PeerMemory& memory = *peers_[static_cast<size_t>(group.members[static_cast<size_t>(r)])];
    std::byte* const region = memory.region(place.region, place.region_bytes);
    Storage* const borrowed =
        memory.borrow(*reinterpret_cast<Storage*>(region + place.storage), region + place.data);
    const std::span extents(place.extents.data(), static_cast<size_t>(place.dimensions));
    peer = Tensor::adopt(borrowed, Shape(extents), place.dtype);
  }
}

}  // namespace phalanx
