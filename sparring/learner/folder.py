"""A run's folder: one process at a time, files written whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparring.errors import JournalError, RunLocked


class RunFolder:
    """`runs/<name>/`: run.json, journal.db, checkpoints/<step>/<policy>/, metrics.jsonl, report.html."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    @contextmanager
    def held(path: Path) -> Iterator[RunFolder]:
        """The folder, made if need be and locked until the end; the lock dies with the process. Raises `RunLocked`."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise JournalError(f"run folder {str(path)!r} cannot be made: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunLocked(f"run folder {str(path)!r} is in use by another process: wait for it, or use another name") from error
            yield RunFolder(path)
        finally:
            os.close(descriptor)

    @property
    def journal(self) -> Path:
        return self.path / "journal.db"

    def checkpoint(self, policy: str, step: int) -> Path:
        return self.path / "checkpoints" / str(step) / policy

    def write_settings(self, run: Mapping[str, Any]) -> None:
        """run.json, whole or not at all."""
        write_whole(self.path / "run.json", json.dumps(run, indent=2, ensure_ascii=False) + "\n")

    def prune(self, policy: str, kept: set[int]) -> None:
        """Delete the policy's checkpoints of other steps."""
        for folder in (self.path / "checkpoints").glob(f"*/{policy}"):
            if folder.parent.name.isdecimal() and int(folder.parent.name) not in kept:
                shutil.rmtree(folder)
                if not any(folder.parent.iterdir()):
                    folder.parent.rmdir()


def write_whole(path: Path, text: str) -> None:
    """Write a text file under another name, wait for the disk, and rename it into place. Raises `JournalError`."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise JournalError(f"{str(path)!r} cannot be written: {error.strerror}; free some disk space and resume") from error
