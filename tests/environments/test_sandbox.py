"""The contract of `Sandbox`: values, output, limits, many at once, and what happens when parts of it die."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.environments.sandbox import Call, Sandbox, Tier
from sparring.environments.sandboxing import syscalls
from sparring.environments.sandboxing.inside import pack, unpack
from sparring.environments.sandboxing.result import Ending, Limits
from sparring.environments.sandboxing.server import standing
from sparring.errors import SettingError

ROOT = Path(__file__).parents[2]
BOX = Sandbox(limits=Limits(seconds=10))

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
    | st.text() | st.binary()
)  # fmt: skip
keys = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
plain = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner) | st.tuples(inner) | st.sets(keys) | st.frozensets(keys) | st.dictionaries(keys, inner)
    ),
    max_leaves=10,
)


@given(plain)
def test_plain_values_cross_unchanged(value: Any) -> None:
    crossed = unpack(pack(value))
    assert crossed == value
    assert repr(type(crossed)) == repr(type(value))


def test_other_numbers_cross_too() -> None:
    assert isnan(unpack(pack(nan)))
    assert unpack(pack([inf, -inf, 10**5000, -(2**53), True])) == [inf, -inf, 10**5000, -(2**53), True]
    assert unpack(pack(bytearray(b"ab"))) == bytearray(b"ab")


@pytest.mark.parametrize(
    "data",
    [{}, {"q": []}, {"i": 3}, {"i": "x"}, {"t": "ab"}, {"s": [[1]]}, {"d": [[1]]}, {"d": [{"t": [1, 2]}]}, {"a": []},
     {"b": "zz"}, {"c": [1, 2, 3]}, {"i": "1", "f": "2"}],
)  # fmt: skip
def test_what_no_value_is_written_as_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack(data)


@pytest.mark.parametrize("tier", ["monty", "zygote", "bubblewrap"])
async def test_calls_are_answered_in_order(tier: Tier) -> None:
    code = "seen = []\ndef f(x, *, y=0):\n    seen.append(x)\n    print('f', x)\n    return (len(seen), {x: {y}})"
    calls = [Call(name="f", args=["a"]), Call(name="f", args=["b"], kwargs={"y": 2.5})]
    result = await replace(BOX, tier=tier).run(code, calls=calls)
    assert (result.ending, result.error) == (Ending.OK, "")
    assert result.values == ((1, {"a": {0}}), (2, {"b": {2.5}}))
    assert result.output == "f a\nf b\n"


async def test_a_call_that_fails_ends_the_run() -> None:
    calls = [Call(name="f", args=[n]) for n in (1, 0, 2)]
    result = await BOX.run("def f(x):\n    return 6 / x", calls=calls)
    assert (result.ending, result.values) == (Ending.EXCEPTION, (6.0,))
    assert 'File "solution.py", line 2, in f\n    return 6 / x\n' in result.error
    assert result.error.endswith("ZeroDivisionError: division by zero\n")
    assert "in _obey" not in result.error, "the frames of the program inside are not shown"


async def test_a_program_reads_its_input_and_prints() -> None:
    result = await BOX.run("import sys\nprint(sum(map(int, sys.stdin)))\nsys.stderr.write('!')", stdin="1\n2\n39\n")
    assert (result.ending, result.output, result.errors) == (Ending.OK, "42\n", "!")
    assert (await BOX.run("print(input())", stdin="\u00e9\u4e2d")).output == "\u00e9\u4e2d\n"


async def test_a_program_is_the_main_module_and_ends_as_one() -> None:
    code = (
        "import atexit, threading\natexit.register(print, 'end')\n"
        "if __name__ == '__main__':\n    threading.Thread(target=print, args=('thread',)).start()"
    )
    assert (await BOX.run(code)).output == "thread\nend\n"
    result = await BOX.run(f"{code}\nimport sys\nsys.exit(2)")
    assert (result.ending, result.error, result.output) == (Ending.EXCEPTION, "it left with code 2", "thread\nend\n")


async def test_chance_and_hashes_are_the_same_every_time() -> None:
    code = "import random\nprint(random.random(), hash('a'))"
    assert len({(await BOX.run(code)).output for _ in range(3)}) == 1


async def test_each_run_may_have_limits_of_its_own() -> None:
    result = await BOX.run("while True: pass", limits=Limits(seconds=0.2))
    assert result.ending is Ending.TIME
    assert result.error == "it took longer than 0.2 s"
    assert 0.2 <= result.seconds < 5


async def test_many_at_once_do_not_meet() -> None:
    outputs: dict[int, str] = {}

    async def one(n: int) -> None:
        code = f"import os\nopen('/tmp/x', 'w').write('{n}')\nprint(open('/tmp/x').read(), os.listdir('/tmp'))"
        outputs[n] = (await BOX.run(code)).output

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for n in range(50):
                group.start_soon(one, n)
    assert outputs == {n: f"{n} ['x']\n" for n in range(50)}


async def test_the_time_that_a_run_waits_for_others_is_not_its_own() -> None:
    box = Sandbox(at_once=1, limits=Limits(seconds=2))
    endings = []

    async def one() -> None:
        endings.append((await box.run("import time\ntime.sleep(0.7)")).ending)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(one)
    assert endings == [Ending.OK] * 4


async def test_a_run_that_is_given_up_is_killed() -> None:
    await BOX.run("")
    server = standing(isolated=True)
    assert server is not None
    with anyio.move_on_after(0.3) as scope:
        await BOX.run("while True: pass")
    assert scope.cancelled_caught
    await eventually(lambda: running(server.process.pid) == 0)


def running(outer: int) -> int:
    """How many processes run below the server: below bubblewrap's own process stands the server."""
    children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
    inner = children[0]
    return len(Path(f"/proc/{inner}/task/{inner}/children").read_text().split())


async def test_a_killed_server_is_started_again() -> None:
    await BOX.run("")
    server = standing(isolated=True)
    assert server is not None
    results = []

    async def one() -> None:
        results.append(await BOX.run("import time\ntime.sleep(0.3)\nprint('done')"))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(one)
            await anyio.sleep(0.1)
            inner = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()[0]
            os.kill(int(inner), signal.SIGKILL)
    assert [(result.output, result.error) for result in results] == [("done\n", "")], "the run is made again"


def test_nothing_outlives_a_killed_host() -> None:
    """Not even a run that never ends."""
    program = (
        "import anyio\nfrom sparring.environments.sandbox import Sandbox\n"
        "from sparring.environments.sandboxing.server import standing\n"
        "async def main():\n    await Sandbox().run('')\n    print(standing(isolated=True).process.pid, flush=True)\n"
        "    await Sandbox().run('while True: pass')\nanyio.run(main)"
    )
    host = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    outer = int(host.stdout.readline())
    anyio.run(eventually, lambda: running(outer) > 0)
    inner = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0]
    host.kill()
    host.communicate()
    anyio.run(eventually, lambda: not Path(f"/proc/{inner}").exists())


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await anyio.sleep(0.02)
    raise AssertionError("it did not come to pass in 20 s")


def test_without_bubblewrap_nothing_runs() -> None:
    program = (
        "import anyio\nfrom sparring.environments.sandbox import Sandbox\nprint(anyio.run(Sandbox().run, 'print(1)'))"
    )
    environment = {"PATH": "/nowhere", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "Ending.REFUSED" in done.stdout
    assert "apt-get install bubblewrap" in done.stdout
    assert "output=''" in done.stdout


@pytest.mark.parametrize(
    "script, says",
    [
        ("echo bwrap: no permission to create namespaces >&2; exit 1", "no permission to create namespaces"),
        ("exit 0", "it said nothing"),
    ],
)
def test_a_bubblewrap_that_fails_is_a_refusal(script: str, says: str, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/bash\n{script}\n")
    fake.chmod(0o755)
    program = (
        "import anyio\nfrom sparring.environments.sandbox import Sandbox\nprint(anyio.run(Sandbox().run, 'print(1)'))"
    )
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "Ending.REFUSED" in done.stdout
    assert says in done.stdout
    assert "user.max_user_namespaces" in done.stdout, "the remedy"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Sandbox(tier="subprocess"), r"tier='subprocess'.*zygote, bubblewrap"),  # type: ignore[arg-type]
        (lambda: Sandbox(modules=("no_such_module",)), "'no_such_module' is no module that is installed here"),
        (lambda: Sandbox(modules=("numpy.linalg",)), "'numpy.linalg' is no module"),
        (lambda: Sandbox(at_once=0), "at_once=0"),
        (lambda: Limits(seconds=0), "seconds=0"),
        (lambda: Limits(seconds=inf), "seconds=inf"),
        (lambda: Limits(threads=True), "threads=True"),
        (lambda: Limits(memory=1000), "memory=1000"),
    ],
)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


async def test_arguments_that_cannot_cross_are_refused() -> None:
    with pytest.raises(SettingError, match="'object'"):
        await BOX.run("", calls=[Call(name="f", args=[object()])])


def test_there_is_a_filter_for_each_machine() -> None:
    for machine in syscalls.machines():
        program = syscalls.program(machine)
        assert len(program) % 8 == 0
        assert len(program) // 8 < 4096, "the kernel takes no more instructions"
    with pytest.raises(KeyError):
        syscalls.program("vax")


WITH_NUMPY = Sandbox(modules=("numpy",), limits=Limits(memory=1 << 30))


async def test_modules_that_are_installed_here_are_there_where_they_are_named() -> None:
    code = "import numpy, sys\nassert 'numpy' in sys.modules\nprint(int(numpy.arange(5).sum()))"
    result = await WITH_NUMPY.run(code)
    assert (result.ending, result.output) == (Ending.OK, "10\n"), result.error
    without = await BOX.run("import numpy")
    assert (without.ending, "ModuleNotFoundError" in without.error) == (Ending.EXCEPTION, True)


async def test_with_modules_everything_else_is_as_closed() -> None:
    """Their folder is one that can be read, and no more than read; what they wrote when they were imported is not there."""
    folder = Path(find_spec("numpy").origin or "").parent  # type: ignore[union-attr]
    code = (
        "import os, numpy\nfound = [os.listdir('/tmp'), os.path.exists('/etc/passwd'), os.path.exists('/var'), os.getuid()]\n"
        "try: open(numpy.__path__[0] + '/written', 'w')\n"
        "except OSError as error: found.append(type(error).__name__)\n"
        f"found.append(os.path.exists({str(ROOT / 'pyproject.toml')!r}))\nprint(found)"
    )
    result = await WITH_NUMPY.run(code)
    assert result.output == "[[], False, False, 1000, 'OSError', False]\n", result
    assert not (folder / "written").exists()
