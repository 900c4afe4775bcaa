"""Says what the tests run with, and gives them the kinds of arrays that there are."""

import numpy as np
import pytest

from kinds import ml_dtypes, torch  # None where it is not there


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
