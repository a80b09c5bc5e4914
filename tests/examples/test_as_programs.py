"""Examples that are programs of their own: started by Python alone, they are what `sparring train` makes of them."""

import subprocess
import sys

import pytest

from tests.examples.short import FOLDER


@pytest.mark.parametrize("name", ["gymnasium_blackjack", "kuhn"])
def test_an_example_started_by_python_trains(name: str) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--steps", "0"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "sparring train: steps=0: must be a whole number, at least 1" in done.stderr
