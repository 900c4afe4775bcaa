// A task beside the one that it alternates with: on a timeline, in a row of its own.
#pragma once

#include "phalanx/base/task.h"
#include "phalanx/base/trace.h"

namespace phalanx {

/// The same task, for the second place of an `overlap`: its spans lie in the row `beside`.
template <class T>
Task<T> beside(Task<T> task) {
  while (true) {
    {
      const TraceBeside row;
      task.resume();
    }
    if (task.done()) break;
    co_await Suspend(*task.waiting());
  }
  co_return task.result();
}

}  // namespace phalanx
