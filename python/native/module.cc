// The module phalanx._native: what the package of python/phalanx is written on.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "phalanx/comm/launch.h"
#include "python/native/array.h"
#include "python/native/ep.h"
#include "python/native/rank.h"

namespace phalanx::python {
namespace nb = nanobind;
using nb::arg;
namespace {

// Called without the GIL by the threads that wait, so errors are thrown as they are.
void bind_rank(nb::module_& m) {
  const nb::call_guard<nb::gil_scoped_release> no_gil;
  nb::class_<Rank>(m, "Rank", nb::is_weak_referenceable(), "One rank of a world, on a thread of its own.")
      .def("place", &Rank::place, no_gil, "(rank, ranks), when the world has begun.")
      .def("leave", &Rank::leave, "Asks it to end; does not wait.")
      .def("fail", &Rank::fail, arg("why"), "Ends the world: the other ranks' calls raise CommError.")
      .def(
          "wait_ended",
          [](Rank& rank, double seconds) {
            return rank.wait_ended(std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000)));
          },
          arg("seconds"), no_gil, "True when it has ended.")
      .def("barrier", [](Rank& rank) { rank.call([](Group& world) { return world.barrier().wait(); }); })
      .def(
          "all_gather",
          [](Rank& rank, const Tensor& x) {
            Tensor out = rank.call([x](Group& world) { return world.all_gather(x).wait(); });
            release_arrays();
            return out;
          },
          arg("x"), "x [n, …] of every rank, as [ranks · n, …] by rank.");
  nb::class_<Event>(m, "Event", "The end of what a rank was asked for and was not waited for.")
      .def(
          "wait",
          [](const Event& event) {
            event.wait();
            release_arrays();
          },
          "Waits; raises what that raised.")
      .def("is_of", &Event::is_of, arg("rank"), "Whether that rank does what it is asked for after it.");
}

void bind_worlds(nb::module_& m) {
  m.def("start_threads", &start_threads, arg("ranks"), arg("threads_per_rank") = 0, arg("deadline") = 0.0);
  nb::class_<Meeting>(m, "Meeting", "Where the processes of a world meet; rank 0's.")
      .def(nb::init<int>(), arg("port") = 0)
      .def_prop_ro("port", &Meeting::port);
  m.def(
      "join_processes",
      [](std::pair<int, int> place, const std::pair<int, std::string>& meeting, Meeting* mine, int threads,
         double deadline) {
        return join_processes({.rank = place.first,
                               .ranks = place.second,
                               .port = meeting.first,
                               .key = meeting.second,
                               .threads_per_rank = threads,
                               .deadline = deadline},
                              mine);
      },
      arg("place"), arg("meeting"), arg("mine").none(), arg("threads_per_rank") = 0, arg("deadline") = 0.0,
      "This process as rank place[0] of place[1], at (port, key); rank 0 gives its Meeting.");
  m.def("join_mpi", &join_mpi, arg("threads_per_rank") = 0, arg("deadline") = 0.0);
  m.def(
      "launched",
      []() -> std::optional<std::tuple<std::string, int, int, std::string, int>> {
        const std::optional<Launched> place = launched_by();
        if (!place) return std::nullopt;
        return std::tuple(std::string(transport_name(place->transport)), place->rank, place->ranks,
                          place->address, place->port);
      },
      "None, or (transport, rank, ranks, address, port) as a launcher says.");
}

void bind_errors(nb::module_& m) {
  const nb::exception<Error> error(m, "Error", PyExc_RuntimeError);
  const nb::exception<BrokenPromise> broken(m, "BrokenPromise", error.ptr());
  const nb::exception<CommError> comm(m, "CommError", error.ptr());
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // arrays that a program holds at its end are no leaks
  bind_errors(m);
  bind_tensor(m);
  bind_rank(m);
  bind_worlds(m);
  bind_buffer(m);
  bind_low_latency(m);
  bind_balance(m);
}

}  // namespace phalanx::python
