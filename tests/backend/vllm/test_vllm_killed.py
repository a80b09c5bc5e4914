"""The process that uses vLLM is killed while vLLM starts, or vLLM does not start in time: nothing of it stays."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from time import monotonic
from typing import TypeVar

import psutil
import pytest

from sparring.backend.vllm.errors import EngineStuck
from sparring.backend.vllm.reaper import MARK, marked
from tests.backend.vllm.engines import Relay, sampler_on
from tests.cli.command import ROOT

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
T = TypeVar("T")
HOST = """
import sys
from pathlib import Path
from tests.backend.vllm.engines import Relay, sampler_on

sampler_on(Path(sys.argv[1]), Relay(), rank=8).start()
print("started", flush=True)
sys.stdin.read()
"""


def until(find: Callable[[], T], seconds: float = 120.0) -> T:
    """What is found, as soon as there is something."""
    end = monotonic() + seconds
    while not (found := find()):
        assert monotonic() < end, "it was never found"
        Event().wait(0.05)
    return found


def children(host: int, named: str) -> list[psutil.Process]:
    """Of the host those whose command line holds the name."""
    found: list[psutil.Process] = []
    for process in psutil.Process(host).children(recursive=True):
        try:
            found += [process] if named in " ".join(process.cmdline()) else []
        except psutil.Error:
            continue
    return found


def is_there(process: psutil.Process) -> bool:
    """Whether it runs, and is not just waiting for its parent to notice that it does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("named", ["spawn_main", "VLLM::EngineCore"])
def test_a_host_that_is_killed_while_vllm_starts_leaves_no_engine(tiny_wide: Path, named: str) -> None:
    """As soon as the engine's process is there, and once it has its title, which must not hide the mark."""
    command = [sys.executable, "-c", HOST, str(tiny_wide)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as host:
        try:
            engine = until(lambda: children(host.pid, named))[0]
            mark = engine.environ()[MARK]
            assert engine.pid in marked(mark)
            family = psutil.Process(host.pid).children(recursive=True)
        finally:
            host.kill()
        until(lambda: not any(map(is_there, family)), 30)
        assert marked(mark) == []
        assert host.stdout is not None and host.stdout.read() == "", "it was killed too late"


def test_vllm_that_does_not_start_in_time_is_ended(tiny_wide: Path) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    contexts = open_contexts()
    sampler = sampler_on(tiny_wide, Relay(), rank=8, start_within=1.0)
    with pytest.raises(EngineStuck, match="did not start within 1 s"):
        sampler.start()
    left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
    assert [process.cmdline() for process in left if "resource_tracker" not in " ".join(process.cmdline())] == []
    assert open_contexts() == contexts


def open_contexts() -> int:
    """Of zmq, with threads of their own, in this process; also those that nobody holds any more."""
    zmq = sys.modules.get("zmq")
    found = [] if zmq is None else [one for one in gc.get_objects() if type(one) is zmq.Context]
    return sum(not one.closed for one in found)
