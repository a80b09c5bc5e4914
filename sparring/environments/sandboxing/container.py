"""A server in a container of docker or podman, on this machine: one container for every run, and nothing of the host in it but
the socket that it is talked to by.

It ends when its end of the control line is closed, also where this process is killed: the server is process 1 of its container.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import monotonic
from typing import IO

from sparring.environments.sandboxing.result import MIB, Limits
from sparring.environments.sandboxing.server import (
    ENVIRONMENT,
    NOBODY,
    START,
    CannotStart,
    NobodyCame,
    Server,
    interpreted,
)

_PROGRAMS = ("docker", "podman")
_OF_ITS_OWN, _PROCESSES = 128 * MIB, 4
"""What a server needs beside a run."""
_INSIDE = "/sparring"


def contained(image: str, limits: Limits) -> Server:
    """A server in a new container of `image`, which is the caller's to close. Blocks (some 0.5 s). Raises `CannotStart`."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if sys.platform != "linux" or program is None:
        raise CannotStart(
            f"containers need Linux, and docker or podman in the PATH; this is {sys.platform}, and "
            f"{'there is neither' if program is None else f'{program!r} has its own machine'}"
        )
    return Server(partial(_run, program, image, limits), partial(_explained, Path(program).name, image))


def _run(program: str, image: str, limits: Limits, log: IO[bytes]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    with tempfile.TemporaryDirectory(prefix="sparring-") as outer:  # which nobody else may enter
        inner = Path(outer) / "control"
        inner.mkdir()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(str(inner / "socket"))
            inner.chmod(0o755)
            (inner / "socket").chmod(0o777)
            listening.listen(1)
            process = subprocess.Popen(
                [
                    program,
                    *_options(inner, limits),
                    image,
                    *interpreted(isolated=False, uid=None, path=f"{_INSIDE}/socket"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            return process, _caller(listening, process)


def _options(control: Path, limits: Limits) -> list[str]:
    memory = limits.memory + limits.disk + _OF_ITS_OWN
    environment = [f"--env={name}={value}" for name, value in ENVIRONMENT.items()]
    return [
        *("run", "--rm", "--pull=never", "--network=none", "--read-only", "--cap-drop=ALL"),
        *("--security-opt=no-new-privileges", f"--user={NOBODY}:{NOBODY}", "--workdir=/tmp", "--entrypoint=python3"),
        *(f"--pids-limit={limits.threads + _PROCESSES}", f"--memory={memory}", f"--memory-swap={memory}"),
        f"--tmpfs=/tmp:rw,nosuid,nodev,noexec,mode=1777,size={limits.disk}",
        f"--volume={control}:{_INSIDE}:ro",
        *environment,
    ]


def _caller(listening: socket.socket, process: subprocess.Popen[bytes]) -> socket.socket:
    """Our end of the line, once the server has called. Raises `NobodyCame`."""
    listening.settimeout(0.1)
    until = monotonic() + START
    while process.poll() is None and monotonic() < until:
        try:
            return listening.accept()[0]
        except TimeoutError:
            continue
    process.kill()
    process.wait()
    raise NobodyCame


def _explained(program: str, image: str, log: str) -> str:
    return (
        f"the container did not start: {log}. It needs a daemon on this machine ({program} info) and an image with Python 3.11 "
        f"or later, which is not fetched by itself ({program} pull {image})"
    )
