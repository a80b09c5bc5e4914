"""What a killed process leaves is ended and removed, and nothing else is."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from sparring.backend.vllm import reaper
from sparring.backend.vllm.reaper import Reaper, began

SLEEPER = [sys.executable, "-c", "import sys; print('here', flush=True); sys.stdin.read()"]


def sleeper() -> subprocess.Popen[str]:
    process = subprocess.Popen(SLEEPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    return process


def end(process: subprocess.Popen[str]) -> int:
    """Let a process go on to its end; how it ended."""
    process.communicate(timeout=60)
    return process.returncode


def test_a_killed_owner_takes_its_processes_and_its_folder_with_it(tmp_path: Path) -> None:
    first, second = sleeper(), sleeper()
    folder = tmp_path / "adapters"
    (folder / "one").mkdir(parents=True)
    script = (
        "import sys; from pathlib import Path; from sparring.backend.vllm.reaper import Reaper\n"
        f"reaper = Reaper(); reaper.watch([{second.pid}], None); reaper.watch([{first.pid}], Path({str(folder)!r}))\n"
        "print(reaper._process.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None and owner.stdout.readline()
        owner.send_signal(signal.SIGKILL)
    assert first.wait(60) == -signal.SIGKILL
    assert first.wait(60) == -signal.SIGKILL
    assert end(second) == 0, "it was told of others since"
    assert end(first) == -signal.SIGKILL


def test_an_orderly_end_touches_nothing(tmp_path: Path) -> None:
    process = sleeper()
    reaping = Reaper()
    reaping.watch([process.pid], tmp_path)
    reaping.close()
    assert tmp_path.is_dir()
    assert end(process) == 0


def test_a_number_that_another_process_has_now_is_left_alone(tmp_path: Path) -> None:
    process = sleeper()
    folder = tmp_path / "adapters"
    folder.mkdir()
    told = {"processes": [[process.pid, "1"], [2**22 + 1, ""]], "folder": str(folder)}
    subprocess.run(
        [sys.executable, "-I", "-S", reaper.__file__], input=json.dumps(told), text=True, check=True, timeout=60
    )
    assert end(process) == 0
    assert not folder.exists()
    assert began(2**22 + 1) == ""
