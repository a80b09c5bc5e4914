"""A run's folder: one process at a time, files written whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import anyio.to_thread

from sparring.errors import JournalError, RunLocked

_PRUNED = ".pruned"


class RunFolder:
    """`runs/<name>/`: run.json, journal.db, checkpoints/<policy>/<step>/, metrics.jsonl, report.html.

    Its methods wait for the disk: call them from a thread.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    @asynccontextmanager
    async def held(path: Path) -> AsyncIterator[RunFolder]:
        """The folder, made if need be and locked until the end; the lock dies with the process. Raises `RunLocked`."""
        descriptor, absolute = await anyio.to_thread.run_sync(_locked, path)
        try:
            yield RunFolder(absolute)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_let_go, descriptor, absolute)

    @property
    def journal(self) -> Path:
        return self.path / "journal.db"

    @property
    def page(self) -> Path:
        """Whose code runs, while a process trains; what a process left there that died (`sparring.rollout.culprit`)."""
        return self.path / ".running"

    def checkpoint(self, policy: str, step: int) -> Path:
        return self.path / "checkpoints" / policy / str(step)

    def checkpoints(self, policy: str) -> set[int]:
        """The steps after which the policy's checkpoints lie here, and 0, as what every run begins with needs no file."""
        folder = self.path / "checkpoints" / policy
        return {0} | {int(one.name) for one in folder.glob("*") if one.name.isdecimal()}

    def fresh_checkpoint(self, policy: str, step: int) -> Path:
        """Where a checkpoint may be written: what a crash left there half-journaled is deleted."""
        path = self.checkpoint(policy, step)
        try:
            if path.exists():
                shutil.rmtree(path)
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from error
        return path

    def write_settings(self, run: Mapping[str, Any]) -> None:
        """run.json, whole or not at all."""
        write_whole(self.path / "run.json", json.dumps(run, indent=2, ensure_ascii=False) + "\n")

    def sweep(self) -> None:
        """Delete the checkpoints that a process which died left half written or half deleted."""
        try:
            for left in (self.path / "checkpoints").glob("*/.[0-9]*"):
                shutil.rmtree(left)
        except OSError as error:
            raise _unwritable(self.path / "checkpoints", error) from error

    def prune(self, policy: str, kept: set[int]) -> None:
        """Delete the policy's checkpoints of other steps. Each loses its name first: one that is half deleted is none."""
        try:
            folder = self.path / "checkpoints" / policy
            for old in [one for one in folder.iterdir() if one.name.isdecimal() and int(one.name) not in kept]:
                shutil.rmtree(old.rename(old.with_name(f".{old.name}{_PRUNED}")))
        except OSError as error:
            raise _unwritable(self.path / "checkpoints" / policy, error) from error


def _locked(path: Path) -> tuple[int, Path]:
    """The open, locked folder and its absolute path: a backend would take a relative one for a name of its own.

    A folder that somebody let go, and so deleted, before it was locked here is made again: that lock would keep nobody out.
    """
    while True:
        try:
            path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise JournalError(f"run folder {str(path)!r} cannot be made: {error.strerror}") from error
        _lock(descriptor, path)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor, path.absolute()
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise RunLocked(
            f"run folder {str(path)!r} is in use by another process: wait for it, or use another name"
        ) from error


def _let_go(descriptor: int, path: Path) -> None:
    with suppress(OSError):  # a run that was refused before anything was written leaves no folder behind
        path.rmdir()
    os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a text file under another name, wait for the disk, and rename it into place. Raises `JournalError`."""
    with written_whole(path) as file:
        file.write(text.encode())


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """The same for what is written piece by piece; where the writing fails, no file is left."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> JournalError:
    return JournalError(f"{str(path)!r} cannot be written: {error.strerror}; free some disk space and resume")
