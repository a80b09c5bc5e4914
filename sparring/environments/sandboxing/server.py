"""The host's side of a server: how it is started, shut in by bubblewrap, and ended.

A server belongs to this process, not to an event loop: its files are waited for on whichever loop asks. It ends when its end of
the control line is closed, also where this process is killed, and every run with it.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from sparring.environments.sandboxing import inside, syscalls

NOBODY = 199_999
"""Whose rights a server takes on where sparring runs as root: a user that no account has."""

MODULES = [
    "array", "base64", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools",
    "hashlib", "heapq", "itertools", "json", "math", "numbers", "operator", "queue", "random", "re", "statistics", "string",
    "textwrap", "time", "typing",
]  # fmt: skip
"""What candidates like to import; it is there before they begin."""
START = 30.0
_SCRATCH = 16 << 20
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}  # of threads, a run has one


class CannotStart(Exception):
    """A sandbox cannot be had; the message says what is missing."""


def missing() -> list[str]:
    """What this machine lacks for a sandbox, each with its remedy; empty where nothing is known to lack."""
    found = []
    if sys.platform != "linux":
        found.append(
            f"Linux: sandboxes are made of its namespaces, and this is {sys.platform}; use a Linux machine or container"
        )
    elif platform.machine() not in syscalls.machines():
        found.append(
            f"a filter of system calls for {platform.machine()}: there is one for {', '.join(syscalls.machines())}"
        )
    elif shutil.which("bwrap") is None:
        found.append("bubblewrap: install the package of that name (apt-get install bubblewrap)")
    return found


class NobodyCame(Exception):
    """What was started ended, or took too long, before it took its end of the control line."""


Begin = Callable[[IO[bytes]], tuple["subprocess.Popen[bytes]", socket.socket]]
"""Starts a server that prints to a file; its process, and our end of the control line. Raises `NobodyCame`."""


class Server:
    """One running server. Starting it blocks (20 to 100 ms, a container some 500, and as long as it takes to import modules).
    Raises `CannotStart`, with what `explained` makes of what it printed."""

    def __init__(self, begin: Begin, explained: Callable[[str], str]) -> None:
        with tempfile.TemporaryFile() as log:
            ready = False
            with suppress(NobodyCame):
                self.process, self.control = begin(log)
                self._end = weakref.finalize(self, _ended, self.process, self.control)
                self.control.settimeout(START)
                with suppress(TimeoutError):
                    ready = self.control.recv(16) == b"ready"
                if not ready:
                    self.close()
            if not ready:
                log.seek(0)
                raise CannotStart(explained(log.read().decode(errors="replace").strip()[-1000:] or "it said nothing"))
        self.control.setblocking(False)
        self.gone = False
        """Somebody found its line closed."""

    @property
    def alive(self) -> bool:
        return not self.gone and self._end.alive and self.process.poll() is None

    def close(self) -> None:
        """End it and its runs. Does nothing the second time."""
        self._end()


def _ended(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    control.close()
    process.kill()
    process.wait()


_servers: dict[tuple[bool, tuple[str, ...]], Server] = {}
_starting = threading.Lock()


def standing(*, isolated: bool, modules: tuple[str, ...] = ()) -> Server | None:
    """The server of this process, where it runs."""
    server = _servers.get((isolated, modules))
    return server if server is not None and server.alive else None


def started(*, isolated: bool, modules: tuple[str, ...] = ()) -> Server:
    """The server of this process, started where it does not run. Blocks. Raises `CannotStart`."""
    with _starting:
        server = standing(isolated=isolated, modules=modules)
        if server is None:
            server = _servers[isolated, modules] = fresh(isolated=isolated, modules=modules)
        return server


def fresh(*, isolated: bool, modules: tuple[str, ...] = ()) -> Server:
    """Another server, which is the caller's to close. Blocks. Raises `CannotStart`."""
    lacking = missing() if isolated else [line for line in missing() if "bubblewrap" not in line]
    if lacking:
        raise CannotStart("; ".join(lacking))
    return Server(partial(_forked, isolated, modules), _explained)


def _forked(isolated: bool, modules: tuple[str, ...], log: IO[bytes]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            list(_command(isolated, modules)),
            stdin=theirs.fileno(),
            stdout=log,
            stderr=log,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
    return process, ours


def folders_of(module: str) -> list[str]:
    """Where a module that is installed beside the standard library lies; none for one of the standard library. Raises
    `ModuleNotFoundError`."""
    found = find_spec(module)
    if found is None:
        raise ModuleNotFoundError(module)
    places = list(found.submodule_search_locations or ()) or [found.origin or ""]
    parents = [str(Path(place).parent) for place in places if place.startswith("/")]
    return [parent for parent in parents if not Path(parent).samefile(Path(os.__file__).parent)]


def interpreted(
    *, isolated: bool, uid: int | None, folders: Sequence[str] = (), modules: Sequence[str] = (), path: str = ""
) -> tuple[str, ...]:
    """What an interpreter is given to be a server; the arguments are those of `inside.serve`."""
    program = syscalls.program(platform.machine()).hex()
    given = f"{isolated!r}, {uid!r}, {program!r}, {list(folders)!r}, {[*MODULES, *modules]!r}, {path!r}"
    return ("-s", "-S", "-P", "-X", "utf8", "-c", f"{Path(inside.__file__).read_text()}\nserve({given})\n")


def _command(isolated: bool, modules: tuple[str, ...]) -> Iterator[str]:
    uid = NOBODY if isolated and os.getuid() == 0 else None
    folders = sorted({folder for module in modules for folder in folders_of(module)})
    inside_of = {folder: f"/modules/{number}" if isolated else folder for number, folder in enumerate(folders)}
    python = os.path.realpath(sys.executable)
    if isolated:
        yield from _bubblewrap(python, inside_of)
    yield python
    yield from interpreted(isolated=isolated, uid=uid, folders=list(inside_of.values()), modules=modules)


def _bubblewrap(python: str, folders: Mapping[str, str]) -> Iterator[str]:
    """The interpreter and its libraries, readable, and `folders` {on this machine: inside}; nothing else of this machine."""
    yield from (shutil.which("bwrap") or "bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net")
    yield from ("--new-session", "--as-pid-1", "--clearenv")
    for name, value in ENVIRONMENT.items():
        yield from ("--setenv", name, value)
    if (
        os.getuid() != 0
    ):  # root mounts as root, since others may not reach its interpreter, and gives up its rights inside
        yield from ("--unshare-user", "--uid", "1000", "--gid", "1000")
    yield from ("--ro-bind", "/usr", "/usr")
    for name in ("/lib", "/lib64", "/lib32", "/bin"):
        path = Path(name)
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), name)
        elif path.is_dir():
            yield from ("--ro-bind", name, name)
    for prefix in sorted({sys.base_prefix, sys.base_exec_prefix, str(Path(python).parents[1])}):
        if not Path(prefix).is_relative_to("/usr"):
            for folder in reversed(
                Path(prefix).parents[:-1]
            ):  # as the one who runs the code may not walk through root's
                yield from ("--perms", "0755", "--dir", str(folder))
            yield from ("--ro-bind", prefix, prefix)
    yield from _bound(folders)
    yield from ("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--tmpfs", "/dev")
    for device in ("null", "zero", "urandom", "random"):
        yield from ("--dev-bind", f"/dev/{device}", f"/dev/{device}")
    # Some modules write while they are imported. No run sees it: each has a /tmp of its own.
    yield from ("--perms", "1777", "--size", str(_SCRATCH), "--tmpfs", "/tmp") if folders else ("--dir", "/tmp")
    yield from ("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/", "--")


def _bound(folders: Mapping[str, str]) -> Iterator[str]:
    """Elsewhere than on this machine, where they may lie in /tmp, which each run has of its own."""
    if folders:
        yield from ("--perms", "0755", "--dir", "/modules")
    for outside, within in folders.items():
        yield from ("--ro-bind", outside, within)


def _explained(log: str) -> str:
    return (
        f"the sandbox did not start: {log}. It needs user namespaces (sysctl user.max_user_namespaces above 0; in a "
        "container, the right to make them; on Ubuntu, an AppArmor profile for bwrap)"
    )
