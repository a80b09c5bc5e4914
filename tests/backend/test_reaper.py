"""What a killed process leaves is ended and removed, and nothing else is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

from sparring.backend.vllm import reaper
from sparring.backend.vllm.reaper import MARK, Reaper, began, marked

SLEEPER = [sys.executable, "-c", "import sys; print('here', flush=True); sys.stdin.read()"]


def sleeper(mark: str | None = None) -> subprocess.Popen[str]:
    command = SLEEPER if mark is None else ["env", f"{MARK}={mark}", *SLEEPER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    return process


def end(process: subprocess.Popen[str]) -> int:
    """Let a process go on to its end; how it ended."""
    process.communicate(timeout=60)
    return process.returncode


def kill_owner(script: str) -> None:
    """Run an owner until it says something, and kill it."""
    command = [sys.executable, "-c", f"import sys\n{script}\nprint('here', flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline()
        owner.send_signal(signal.SIGKILL)


def test_a_killed_owner_takes_its_processes_and_its_folder_with_it(tmp_path: Path) -> None:
    first, second = sleeper(), sleeper()
    folder = tmp_path / "adapters"
    (folder / "one").mkdir(parents=True)
    kill_owner(
        "from pathlib import Path; from sparring.backend.vllm.reaper import Reaper\n"
        f"reaper = Reaper('{uuid4().hex}'); reaper.watch([{second.pid}], None)\n"
        f"reaper.watch([{first.pid}], Path({str(folder)!r}))"
    )
    assert first.wait(60) == -signal.SIGKILL
    assert end(second) == 0, "it was told of others since"
    assert end(first) == -signal.SIGKILL


def test_what_has_its_mark_is_ended_though_it_was_never_told_of_it(tmp_path: Path) -> None:
    """As an engine is that is still being started, and whatever that has started."""
    mark = uuid4().hex
    known, other = sleeper(mark), sleeper(uuid4().hex)
    assert marked(mark) == [known.pid]
    kill_owner(
        "import subprocess; from sparring.backend.vllm.reaper import Reaper\n"
        f"reaper = Reaper('{mark}'); reaper.watch([], None)\n"
        f"subprocess.Popen(['env', '{MARK}={mark}', 'sh', '-c', 'sleep 600 & sleep 600'])"
    )
    assert known.wait(60) == -signal.SIGKILL
    assert (end(known), end(other)) == (-signal.SIGKILL, 0)
    while marked(mark):
        os.sched_yield()


def test_an_orderly_end_touches_nothing(tmp_path: Path) -> None:
    mark = uuid4().hex
    process, known = sleeper(), sleeper(mark)
    reaping = Reaper(mark)
    reaping.watch([process.pid], tmp_path)
    reaping.close()
    assert tmp_path.is_dir()
    assert (end(process), end(known)) == (0, 0)


def test_a_number_that_another_process_has_now_is_left_alone(tmp_path: Path) -> None:
    process = sleeper()
    folder = tmp_path / "adapters"
    folder.mkdir()
    told = {"mark": "", "processes": [[process.pid, "1"], [2**22 + 1, ""]], "folder": str(folder)}
    subprocess.run(
        [sys.executable, "-I", "-S", reaper.__file__], input=json.dumps(told), text=True, check=True, timeout=60
    )
    assert end(process) == 0
    assert not folder.exists()
    assert began(2**22 + 1) == ""
