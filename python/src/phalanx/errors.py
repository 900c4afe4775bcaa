"""What this package raises: everything is an `Error`."""

from phalanx._native import BrokenPromise, CommError, Error

for _error in (Error, BrokenPromise, CommError):
    _error.__module__ = "phalanx"
Error.__doc__ = "What the caller can mend; the message says what was wrong, where, and what was expected."
CommError.__doc__ = "A rank failed, died or is late, or the ranks' calls differ; names rank and operation."
BrokenPromise.__doc__ = "A condition inside the library did not hold."


class ArgumentError(Error, ValueError):
    """An argument of the wrong type, dtype, shape, device or layout in memory; names the argument."""


class Unsupported(Error, NotImplementedError):
    """An argument that this version does not carry out; names the argument."""
