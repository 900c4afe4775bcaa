"""Says what the tests run with, and gives them the kinds of arrays that there are."""

import numpy as np
import pytest

try:
    import torch
except ImportError:
    torch = None
try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None


def pytest_report_header():
    """What is there, so that a log shows what was not tested."""
    there = [f"numpy {np.__version__}"]
    there.append(f"torch {torch.__version__}" if torch else "WITHOUT torch: nothing of it is tested")
    there.append(f"ml_dtypes {ml_dtypes.__version__}" if ml_dtypes else "WITHOUT ml_dtypes: no NumPy bf16")
    return "phalanx: " + ", ".join(there)


@pytest.fixture
def rng():
    """Random numbers whose seed is printed when a test fails."""
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)
