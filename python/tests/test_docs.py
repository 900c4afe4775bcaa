"""The examples of docs/python.md run."""

import pathlib
import re
import subprocess
import sys

import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("number", range(3))
def test_example(number):
    result = subprocess.run([sys.executable, "-c", BLOCKS[number]], capture_output=True, text=True,
                            timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_all_are_run():
    assert len(BLOCKS) == 3
