"""Weights on their way to vLLM: one private folder of a process, and in it one folder for each published version.

A name, number or path is never used twice, because vLLM keeps adapters by number and prefixes' keys and values by name and
path: what is cached under one of them can then only belong to the weights that were written there.

The folder is in memory (/dev/shm) where there is such a place, readable by its owner alone, locked as long as its process
lives, and removed at the end; one that a killed process left is removed by the next that starts.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from uuid import uuid4

from sparring.errors import BackendError

IN_MEMORY = Path("/dev/shm")
_LOCK = "lock"
WEIGHTS = "model.safetensors"
"""The file of a version that is all weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """One version as vLLM is told of it: an adapter in PEFT's files, or all weights. Later ones have higher numbers."""

    name: str
    number: int
    version: int
    folder: Path


class WeightsFolder:
    """Where weights are written, in a folder of its own below `parent`. `write` and `remove` may be called from any thread."""

    def __init__(self, parent: Path | None = None) -> None:
        below = parent or usual_parent()
        prefix = f"sparring-vllm-{os.getuid()}-"
        remove_abandoned(below, prefix)
        token = uuid4().hex
        fresh = Path(tempfile.mkdtemp(prefix=f".{prefix}{token}-", dir=below))
        self._lock = os.open(fresh / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.path = below / f"{prefix}{token}"
        fresh.rename(self.path)  # under its final name it is locked from the first moment
        self._token, self._numbers = token[:8], count(1)

    def reserve(self) -> tuple[str, int]:
        """A name and a number that nothing else gets."""
        number = next(self._numbers)
        return f"{self._token}-{number}", number

    def write(self, files: Mapping[str, bytes], *, version: int) -> WeightsFile:
        """Write a version's files under a new name. Raises `BackendError` where there is no room for them."""
        name, number = self.reserve()
        folder = self.path / name
        try:
            folder.mkdir(mode=0o700)
            for file, content in files.items():
                (folder / file).write_bytes(content)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise BackendError(
                f"the weights for vLLM cannot be written to {str(folder)!r} ({error}): make room"
            ) from error
        return WeightsFile(name=name, number=number, version=version, folder=folder)

    def remove(self, weights: WeightsFile) -> None:
        """Remove a version's files."""
        shutil.rmtree(weights.folder, ignore_errors=True)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def usual_parent() -> Path:
    """Memory that looks like a folder, or the folder for temporary files."""
    usable = IN_MEMORY.is_dir() and os.access(IN_MEMORY, os.W_OK | os.X_OK)
    return IN_MEMORY if usable else Path(tempfile.gettempdir())


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the folders of processes that are gone: nobody holds their lock."""
    for folder in parent.glob(f"{prefix}*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:
            continue  # its owner is removing it, or it is another user's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
