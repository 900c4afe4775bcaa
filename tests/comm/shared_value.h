// A value that a test and the ranks that it forks share.
#pragma once

#include <sys/mman.h>

#include <memory>

namespace phalanx {

template <class T>
class SharedValue {
 public:
  SharedValue() : at_(mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) {
    std::construct_at(&value());
  }
  ~SharedValue() { munmap(at_, sizeof(T)); }
  SharedValue(const SharedValue&) = delete;
  SharedValue& operator=(const SharedValue&) = delete;
  T& value() { return *static_cast<T*>(at_); }

 private:
  void* at_;
};

}  // namespace phalanx
