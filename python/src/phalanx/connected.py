"""What a buffer does with its ranks, whichever buffer it is."""

from __future__ import annotations

from typing import Optional

from phalanx import _native
from phalanx.errors import Error


class Connected:
    """Holds ranks (what arguments.connect gave) until it is destroyed or garbage."""

    runtime: Optional[_native.Rank]  # None: destroyed
    explicitly_destroy: bool
    _owned: bool  # the group was made for this buffer, and goes with it

    def destroy(self) -> None:
        """Lets go of the ranks; needs explicitly_destroy. Later calls raise Error."""
        if not self.explicitly_destroy:
            raise Error("destroy: the buffer was made without explicitly_destroy=True")
        self._leave()

    def _leave(self) -> None:
        if self.runtime is not None and self._owned:
            self.runtime.leave()
        self.runtime = None

    def __del__(self) -> None:
        if getattr(self, "runtime", None) is not None:
            self._leave()

    def _rank(self) -> _native.Rank:
        if self.runtime is None:
            raise Error("the buffer was destroyed")
        return self.runtime
