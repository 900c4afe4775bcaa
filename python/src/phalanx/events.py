"""Events, as DeepEP has them. On CPUs an operation has finished when its call returns, so waiting never
waits.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

from phalanx.errors import ArgumentError, Error


class EventHandle:
    """The end of work that was asked for before it was made."""

    def current_stream_wait(self) -> None:
        """Returns when that work has finished: at once, on CPUs."""


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


def wait_for(name: str, event: Any) -> None:
    """Waits for an event that a caller gave, or None."""
    if event is None:
        return
    handle = event.event if isinstance(event, EventOverlap) else event
    if handle is None:
        return
    if not isinstance(handle, EventHandle):
        raise ArgumentError(f"{name} is a {type(event).__name__}; it must be an EventOverlap or None")
    handle.current_stream_wait()


def finished(async_finish: bool) -> EventOverlap:
    """The event of a call that has finished: with a handle only where async_finish was set, as DeepEP
    does.
    """
    return EventOverlap(EventHandle() if async_finish else None)
