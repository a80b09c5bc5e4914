"""The tier "docker": what it runs, what it keeps away, that nothing is left. Needs a daemon; elsewhere it is refused, with what
is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from sparring.environments import Call, CodeVerifier, Ending, Limits, Sandbox
from sparring.errors import SettingError
from tests.environments.containers import image, ran

SECOND = Limits(seconds=2.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = image(tmp_path_factory.mktemp("image"))
    if found is None:
        pytest.skip("no docker daemon, or no image of Python for it")
    return found


@pytest.fixture
def sandbox(made: str) -> Sandbox:
    return Sandbox(tier="docker", image=made, limits=SECOND)


def containers() -> set[str]:
    return set(ran("docker", "ps", "--all", "--quiet").stdout.split())


async def more_than(before: set[str], *, wanted: bool) -> bool:
    """Whether, within some 20 s, there are containers that were not there before, or none of them any more."""
    for _ in range(100):
        there = bool(await anyio.to_thread.run_sync(containers) - before)
        if there is wanted:
            return True
        await anyio.sleep(0.2)
    return False


async def test_calls_and_programs(sandbox: Sandbox) -> None:
    result = await sandbox.run("def double(x): return 2 * x", calls=[Call(name="double", args=[(1, 2)])])
    assert (result.ending, result.values) == (Ending.OK, ((1, 2, 1, 2),))
    result = await sandbox.run("print(input()[::-1])", stdin="olleh")
    assert (result.ending, result.output) == (Ending.OK, "hello\n")
    result = await sandbox.run("def broken(): return 1 / 0", calls=[Call(name="broken")])
    assert result.ending is Ending.EXCEPTION and "ZeroDivisionError" in result.error


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("while True: pass", Ending.TIME),
        ("x = bytearray(10**9)", Ending.MEMORY),
        ("print('x' * 10**6)", Ending.OUTPUT),
        ("import os; os.kill(os.getpid(), 9)", Ending.EXCEPTION),
        ("import socket; socket.create_connection(('1.1.1.1', 53), 1)", Ending.EXCEPTION),
        ("open('/usr/here', 'w')", Ending.EXCEPTION),
        ("open('/sparring/here', 'w')", Ending.EXCEPTION),
        ("open('/tmp/big', 'wb').write(bytes(32 << 20))", Ending.EXCEPTION),
        ("import os; os.fork()", Ending.EXCEPTION),
        ("import os; os.setuid(0)", Ending.EXCEPTION),
        (
            "import socket; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect('/sparring/socket')",
            Ending.EXCEPTION,
        ),
    ],
)
async def test_what_it_may_not(sandbox: Sandbox, code: str, ending: Ending) -> None:
    result = await sandbox.run(code)
    assert result.ending is ending, result


async def test_nothing_of_the_host_is_there_and_nothing_is_left(sandbox: Sandbox, tmp_path: Path) -> None:
    before = await anyio.to_thread.run_sync(containers)
    secret = tmp_path / "secret"
    await anyio.Path(secret).write_text("hidden")
    code = f"import os\ndef look(): return os.path.exists({str(secret)!r}), sorted(os.listdir('/tmp')), os.listdir('/sparring')"
    result = await sandbox.run(code, calls=[Call(name="look")])
    assert result.values == ((False, [], []),)
    await sandbox.run("open('/tmp/mine', 'w').write('x')")
    result = await sandbox.run(code, calls=[Call(name="look")])
    assert result.values == ((False, [], []),), "each run has a container of its own"
    assert await more_than(before, wanted=False)


KILLED = """
import sys
import anyio
from sparring.environments import Sandbox
anyio.run(Sandbox(tier="docker", image=sys.argv[1]).run, "while True: pass")
"""


async def test_a_container_ends_with_the_process_that_began_it(made: str) -> None:
    before = await anyio.to_thread.run_sync(containers)
    command = [sys.executable, "-c", KILLED, made]
    async with await anyio.open_process(command, stdout=subprocess.DEVNULL, stderr=None) as process:
        assert await more_than(before, wanted=True)
        process.kill()
    assert await more_than(before, wanted=False)


async def test_an_image_that_is_not_there_is_said(made: str) -> None:
    result = await Sandbox(tier="docker", image="sparring/nobody:has").run("print(1)")
    assert result.ending is Ending.REFUSED
    assert "docker pull sparring/nobody:has" in result.error and "No such image" in result.error


async def test_a_verdict_is_made_outside_here_too(made: str) -> None:
    verifier = CodeVerifier(tier="docker", image=made)
    right = await verifier("def double(x): return 2 * x", "double", ["assert double(2) == 4"])
    wrong = await verifier("def double(x): return x", "double", ["assert double(2) == 4"])
    assert (right.passed, wrong.passed) == (True, False)


async def test_without_docker_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = await Sandbox(tier="docker").run("print(1)")
    assert result.ending is Ending.REFUSED and "docker or podman in the PATH" in result.error


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(SettingError, match=r"image='python:3.13'.* only tier='docker' has an image"):
        Sandbox(image="python:3.13")
    with pytest.raises(SettingError, match=r"modules=\('json',\).*standard library of its image"):
        Sandbox(tier="docker", modules=("json",))
