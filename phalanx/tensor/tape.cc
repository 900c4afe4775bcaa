#include "phalanx/tensor/tape.h"

namespace phalanx {

Tape& Tape::scope(std::string_view name, int index) {
  for (const auto& child : children_) {
    if (child->index_ == index && child->name_ == name) return *child;
  }
  // lint-allow(raw-memory): the constructor is private
  children_.push_back(std::unique_ptr<Tape>(new Tape(root_, name, index)));
  return *children_.back();
}

void Tape::run_deferred() {
  for (const auto& work : deferred_) {
    const TracePart part(work->label, TracePhase::weights);
    work->run();
  }
  deferred_.clear();
}

bool Tape::empty() const {
  if (!saved_.empty() || !deferred_.empty()) return false;
  for (const auto& child : children_) {
    if (!child->empty()) return false;
  }
  return true;
}

void Tape::clear() {
  saved_.clear();
  deferred_.clear();
  for (const auto& child : children_) child->clear();
}

}  // namespace phalanx
