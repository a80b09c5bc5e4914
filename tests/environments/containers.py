"""An image for the tests of containers, made of this machine's own Python where nobody has fetched one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from sparring.environments.sandbox import IMAGE

OURS = "sparring/python:tests"
PYTHON = Path("/usr/bin/python3")


def ran(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def image(folder: Path) -> str | None:
    """Its name; None where there is no daemon, or nothing that an image could be made of."""
    if sys.platform != "linux" or shutil.which("docker") is None or ran("docker", "info").returncode != 0:
        return None
    if ran("docker", "image", "inspect", IMAGE).returncode == 0:
        return IMAGE
    version = ran(str(PYTHON), "-c", "import sys; print(*sys.version_info[:2], sep='.')").stdout.strip()
    library = Path("/usr/lib") / f"python{version}"
    if version < "3.11" or not library.is_dir():
        return None
    root = folder / "root"
    for name in ("tmp", "proc", "dev", "usr/bin"):
        (root / name).mkdir(parents=True)
    unneeded = shutil.ignore_patterns("__pycache__", "test")
    shutil.copytree(library, root / library.relative_to("/"), symlinks=False, ignore=unneeded)
    shutil.copy(PYTHON.resolve(), root / "usr/bin/python3")
    linked = "".join(ran("ldd", str(part)).stdout for part in (PYTHON, *library.glob("lib-dynload/*.so")))
    for needed in {word for word in linked.split() if word.startswith("/") and not word.endswith(":")}:
        (root / needed[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(needed, root / needed[1:])
    archive = shutil.make_archive(str(folder / "image"), "tar", root)
    done = ran("docker", "import", archive, OURS)
    assert done.returncode == 0, done.stderr
    return OURS
