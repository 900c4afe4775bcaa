"""Events, as DeepEP has them: the end of an operation that goes on after its call has returned."""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

from phalanx import _native
from phalanx.errors import ArgumentError, Error


class EventHandle:
    """The end of an operation of a rank; without one, of what the caller has computed, which has ended."""

    def __init__(self, operation: Optional[_native.Event] = None) -> None:
        self._operation = operation

    def current_stream_wait(self) -> None:
        """Returns when it has ended; raises what it raised."""
        if self._operation is not None:
            self._operation.wait()

    def wait_before(self, rank: _native.Rank) -> None:
        """The same, for what that rank is asked for next: it does its own operations in turn."""
        if self._operation is not None and not self._operation.is_of(rank):
            self._operation.wait()


class EventOverlap:
    """An event, and what is to happen when it has been waited for.

    As a context manager: the body overlaps with the work, which has finished when the body is left.
    """

    def __init__(self, event: Optional[EventHandle] = None,
                 extra_tensors: Optional[Tuple[Any, ...]] = None) -> None:
        self.event = event
        self.extra_tensors = extra_tensors
        self.hook_after_wait: Optional[Callable[[], Any]] = None
        self._release = False

    def current_stream_wait(self, release_handle: bool = False) -> None:
        """Waits for the event, then runs the hook. Error: there is no event (async_finish was not set)."""
        if self.event is None:
            raise Error("there is no event to wait for: async_finish was not set, or the handle was released")
        self.event.current_stream_wait()
        hook, self.hook_after_wait = self.hook_after_wait, None
        if hook is not None:
            hook()
        if release_handle:
            self.event = None

    def register_hook_after_wait(self, hook_after_wait: Callable[[], Any]) -> None:
        """Has hook_after_wait() called at the end of the next wait. Error: there is one already."""
        if self.hook_after_wait is not None:
            raise Error("a hook is registered already")
        self.hook_after_wait = hook_after_wait

    def __call__(self, release_handle: bool = False) -> EventOverlap:
        self._release = release_handle
        return self

    def __enter__(self) -> EventOverlap:
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if self.event is not None:
            self.current_stream_wait(release_handle=self._release)
        self._release = False


def wait_for(name: str, event: Any, rank: _native.Rank) -> None:
    """Has what the rank is asked for next come after an event that a caller gave, or None."""
    if event is None:
        return
    handle = event.event if isinstance(event, EventOverlap) else event
    if handle is None:
        return
    if not isinstance(handle, EventHandle):
        raise ArgumentError(f"{name} is a {type(event).__name__}; it must be an EventOverlap or None")
    handle.wait_before(rank)


def ending(async_finish: bool, operation: Optional[_native.Event] = None) -> EventOverlap:
    """The event of a call, whose operation goes on or has ended: with a handle only where async_finish was
    set, as DeepEP does.
    """
    return EventOverlap(EventHandle(operation) if async_finish else None)
