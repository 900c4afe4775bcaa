"""The kinds of arrays that tests are run with, and worlds of ranks to run them on."""

import numpy as np

try:
    import torch
except ImportError:
    torch = None
try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


class Numpy:
    """NumPy arrays."""

    name = "numpy"
    dtypes = ("float32", "float64", "float16") + (("bfloat16",) if ml_dtypes else ())

    @staticmethod
    def make(values, dtype):
        """values (a NumPy array) as an array of this kind."""
        return np.ascontiguousarray(values).astype(getattr(ml_dtypes, dtype) if "bf" in dtype else dtype)

    @staticmethod
    def wide(x):
        """x as float64 or int64 of NumPy."""
        with np.errstate(invalid="ignore"):  # rows that are undefined may be NaN
            return x.astype(np.int64 if x.dtype.kind in "iub" else np.float64)


class Torch:
    """PyTorch tensors."""

    name = "torch"
    dtypes = ("bfloat16", "float32", "float64", "float16")

    @staticmethod
    def make(values, dtype):
        """values (a NumPy array) as an array of this kind."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(getattr(torch, dtype))

    @staticmethod
    def wide(x):
        """x as float64 or int64 of NumPy."""
        return x.to(torch.float64 if x.dtype.is_floating_point else torch.int64).numpy()


FP8 = [kind for kind, there in ((Numpy, ml_dtypes), (Torch, hasattr(torch, "float8_e4m3fn"))) if there]
KINDS = (Numpy, Torch) if torch else (Numpy,)
EVERY = [(kind, dtype) for kind in KINDS for dtype in kind.dtypes]
IDS = [f"{kind.name}-{dtype}" for kind, dtype in EVERY]


def kind_of(x):
    """The kind of an array."""
    return Numpy if isinstance(x, np.ndarray) else Torch


def random_topk(rng, tokens, k, experts, none=0.1):
    """[tokens, k] i64: different experts, some of them -1."""
    chosen = np.argsort(rng.random((tokens, experts)), axis=1)[:, :k].astype(np.int64)
    chosen[rng.random(chosen.shape) < none] = -1
    return chosen
