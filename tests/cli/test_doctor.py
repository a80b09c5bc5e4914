"""`sparring doctor`: what works is said to work, what is missing is named with its remedy."""

import subprocess
from pathlib import Path

from tests.cli.command import ENTRY, ENVIRONMENT, sparring


def test_it_runs_something_in_each_sandbox(tmp_path: Path) -> None:
    done = sparring("doctor", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sandbox zygote: works" in done.stdout
    assert "sandbox bubblewrap: works" in done.stdout
    assert "\nsandbox docker: " in done.stdout
    assert "unsafe_subprocess_without_isolation: used only where a program names it" in done.stdout
    assert "extra torch: installed" in done.stdout


def test_what_is_missing_is_named_with_its_remedy(tmp_path: Path) -> None:
    environment = ENVIRONMENT | {"PATH": "/nowhere"}
    command = [*ENTRY, "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "sandbox zygote: refused: bubblewrap: install the package of that name" in done.stdout
