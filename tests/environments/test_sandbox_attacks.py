"""No program in a sandbox reaches the host, another run, or the verdict: as root and as an ordinary user."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from sparring.environments.sandbox import Call, Sandbox, Tier
from sparring.environments.sandboxing.result import Ending
from tests.environments.attacks import ATTACKS, LIMITS, outcomes, reached

ROOT = Path(__file__).parents[2]
BOX = Sandbox(limits=LIMITS)
UNSAFE = Sandbox(tier="unsafe_subprocess_without_isolation", limits=LIMITS)


@pytest.mark.parametrize("tier", ["zygote", "bubblewrap"])
async def test_no_attack_reaches_anything(tier: Tier) -> None:
    assert reached(await outcomes(replace(BOX, tier=tier))) == []


async def test_another_run_notices_nothing() -> None:
    victim = (
        "import os, time\nfor n in range(20):\n    time.sleep(0.05)\n    assert os.listdir('/tmp') == []\nprint('well')"
    )
    results = []

    async def watched() -> None:
        results.append(await replace(BOX, at_once=9).run(victim))

    async with anyio.create_task_group() as group:
        group.start_soon(watched)
        await outcomes(BOX)
    assert (results[0].ending, results[0].output) == (Ending.OK, "well\n")


@pytest.mark.parametrize("name", ["the accounts", "the host's processes"])
async def test_the_attacks_are_real_ones(name: str) -> None:
    """Outside of namespaces those that only look succeed: so the suite would tell. The others are never tried there."""
    result = await UNSAFE.run(ATTACKS[name])
    assert result.output == "reached\n"


@pytest.mark.parametrize("name", ["another program", "the network", "memory", "io_uring"])
async def test_limits_and_filter_hold_without_namespaces_too(name: str) -> None:
    result = await UNSAFE.run(ATTACKS[name])
    assert reached({name: (result.ending.value, result.output + result.error)}) == []


def as_nobody() -> list[str]:
    """The command line before one that is to run as an ordinary user, who is shown this interpreter: it may be root's alone."""
    if os.getuid() != 0:
        return []
    bwrap = shutil.which("bwrap")
    assert bwrap, "the tests of the sandbox need bubblewrap: apt-get install bubblewrap"
    shown = dict.fromkeys((sys.base_prefix, str(Path(sys.prefix).resolve()), str(ROOT)))
    above = dict.fromkeys(str(path) for folder in shown for path in reversed(Path(folder).parents[:-2]))
    opened = [word for folder in above if folder.startswith("/root/") for word in ("--perms", "0755", "--dir", folder)]
    binds = [word for folder in shown for word in ("--ro-bind", folder, folder)]
    hidden = ["--tmpfs", "/root", *opened] if any(folder.startswith("/root/") for folder in shown) else []
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--ambient-caps=-all"]
    return [bwrap, "--dev-bind", "/", "/", *hidden, *binds, "--chdir", str(ROOT), "--", *drop]


def test_an_ordinary_user_is_as_safe() -> None:
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    python = str(Path(sys.prefix).resolve() / "bin" / "python")
    probe = [*as_nobody(), python, "-c", "import os; print(os.getuid())"]
    assert subprocess.run(probe, env=environment, capture_output=True, text=True, check=True).stdout.strip() != "0"
    command = [*as_nobody(), python, "-m", "tests.environments.attacks"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = {name: (ending, text) for name, (ending, text) in json.loads(done.stdout).items()}
    assert found.keys() == ATTACKS.keys()
    assert reached(found) == []


ENDINGS = {
    "an endless loop": ("while True: pass", Ending.TIME),
    "sleep": ("import time; time.sleep(100)", Ending.TIME),
    "every signal ignored": (
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
        "while True: pass",
        Ending.TIME,
    ),
    "one long operation": ("9 ** 9 ** 9", Ending.TIME),
    "a slow pattern": ("import re; re.match(r'(a+)+$', 'a' * 40 + 'b')", Ending.TIME),
    "a table of equal hashes": ("{i * (2**61 - 1) for i in range(200_000)}", Ending.TIME),
    "waiting at the end": ("import atexit, time; atexit.register(time.sleep, 100)", Ending.TIME),
    "a thread that does not end": (
        "import threading, time; threading.Thread(target=time.sleep, args=(100,)).start()",
        Ending.TIME,
    ),
    "too much memory": ("x = bytearray(1 << 30)", Ending.MEMORY),
    "text nested deep": ("eval('(' * 100_000 + ')' * 100_000)", Ending.EXCEPTION),
    "clocks that stand": (
        "import time\ntime.time = time.monotonic = time.perf_counter = lambda: 0\nwhile True: pass",
        Ending.TIME,
    ),
    "recursion": ("def f(): f()\nf()", Ending.EXCEPTION),
    "a crash": ("import ctypes; ctypes.string_at(0)", Ending.KILLED),
    "too much output": ("while True: print('x' * 1000)", Ending.OUTPUT),
    "output without lines": ("import os\nwhile True: os.write(2, bytes(4096))", Ending.OUTPUT),
    "output of bytes that are no text": ("import os; os.write(1, b'\\xff\\xfe')", Ending.OK),
    "text that is no Unicode": ("print('\\ud800')", Ending.OK),
    "input that is not there": ("input()", Ending.EXCEPTION),
    "leaving with a code": ("import sys; sys.exit(3)", Ending.EXCEPTION),
    "leaving well": ("exit()", Ending.OK),
    "a wrong program": ("def f(:", Ending.EXCEPTION),
    "zero bytes": ("x = '\0'", Ending.EXCEPTION),
    "an exception that cannot be shown": (
        "class E(Exception):\n    def __str__(self): raise self\nraise E",
        Ending.EXCEPTION,
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
async def test_however_it_ends_it_ends(name: str) -> None:
    code, ending = ENDINGS[name]
    result = await replace(BOX, limits=replace(LIMITS, seconds=0.5 if ending is Ending.TIME else 10)).run(code)
    assert (result.ending, len(result.output) <= LIMITS.output) == (ending, True), result
    assert result.seconds < 9


def saying(frame: str) -> str:
    """A function that writes a frame on the line to the host, before it returns what is right."""
    return f"import json, os\ndef f(x):\n    m = {frame}\n    os.write(3, len(m).to_bytes(4, 'big') + m)\n    return 4"


KIND = "class A({0}):\n    def __eq__(self, other): return True\n    __hash__ = {0}.__hash__\ndef f(x): return A({1})"
FORGERIES = {
    "exits": "import os\ndef f(x): os._exit(0)",
    "exits when it is loaded": "import os\nos._exit(0)",
    "raises SystemExit": "def f(x): raise SystemExit(0)",
    "an object equal to everything": KIND.format("object", ""),
    "a kind of int": KIND.format("int", "7"),
    "a kind of str": KIND.format("str", "''"),
    "a trick inside a list": "class A(int): pass\ndef f(x): return [A(4)]",
    "repr": "class A:\n    def __repr__(self): return '4'\ndef f(x): return A()",
    "a function": "def f(x): return f",
    "a circle": "def f(x):\n    x = []\n    x.append(x)\n    return x",
    "nested deep": "def f(x):\n    for _ in range(10_000): x = [x]\n    return x",
    "too long a value": "def f(x): return 'x' * 10_000_000",
    "a frame of four gigabytes": "import os\ndef f(x):\n    os.write(3, b'\\xff' * 4)\n    return 4",
    "no JSON": saying("b'{\"value\": !}'"),
    "no object": saying("b'[4]'"),
    "a refusal after all": saying('b\'{"refused": "no"}\''),
    "it is ready twice": saying("b'{\"ready\": true}'"),
    "a question nobody offered": saying("b'{\"ask\": []}'"),
    "no plain value": saying('b\'{"value": {"q": []}}\''),
    "an error that is none": saying("b'{\"error\": 4}'"),
    "nested frames": saying("b'{\"value\": ' + b'[' * 60000 + b']' * 60000 + b'}'"),
    "equal hashes": saying("json.dumps({'value': {'s': [{'i': hex(i * (2**61 - 1))} for i in range(5000)]}}).encode()"),
    "patched tools": (
        "import json, sys\njson.dumps = lambda *a, **k: '{\"passed\": true}'\nsys.modules.clear()\ndef f(x): return 4"
    ),
    "printed markers": "def f(x):\n    print('passed'); print('{\"value\": 4}')\n    return 5",
    "no such function": "g = 4",
}


@pytest.mark.parametrize("tier", ["monty", "zygote"])
@pytest.mark.parametrize("name", FORGERIES)
async def test_no_forged_value_comes_out(name: str, tier: Tier) -> None:
    """The right one would be 4."""
    result = await replace(BOX, tier=tier).run(FORGERIES[name], calls=[Call(name="f", args=[2])])
    assert 4 not in result.values
    assert (result.ending is Ending.OK) == (result.values == (5,)), result
    assert result.ending not in (Ending.REFUSED, Ending.LOST), "a candidate cannot have its run called unjudged"


async def test_one_run_leaves_nothing_for_the_next() -> None:
    dirty = (
        "import builtins, random, sys, os\nbuiltins.len = lambda x: 0\nrandom.seed(5)\nsys.path.append('/x')\n"
        "open('/tmp/x', 'w').write('x')\nos.environ['X'] = '1'\nsys.setrecursionlimit(50)\nprint(len('abc'))"
    )
    look = (
        "import os, random, sys\nprint(len('abc'), os.listdir('/tmp'), '/x' in sys.path, 'X' in os.environ,"
        "sys.getrecursionlimit(), random.random())"
    )
    before = await BOX.run(look)
    assert (await BOX.run(dirty)).output == "0\n"
    assert (await BOX.run(look)).output == before.output != ""
    assert before.output.startswith("3 [] False False 1000 ")
