"""Examples that are programs of their own: started by Python alone, they fit once, then train as `sparring train` does."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.short import FOLDER, example

NAMES = ("gymnasium_blackjack", "kuhn")


def _started(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--steps", "0"]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, cwd=folder)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_fitted_is_trained(name: str, tmp_path: Path) -> None:
    (tmp_path / example(name).warm.path / "final").mkdir(parents=True)
    done = _started(name, tmp_path)
    assert done.returncode == 2
    assert "sparring train: steps=0: must be a whole number, at least 1" in done.stderr
    assert "sparring fit" not in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_fitted_is_so_first(name: str, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("no folder")  # so that the fit ends at once
    done = _started(name, tmp_path)
    assert done.returncode == 1, done.stderr
    assert "sparring fit: " in done.stderr
    assert "sparring train" not in done.stderr
