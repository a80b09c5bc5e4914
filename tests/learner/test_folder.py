"""A run's folder: one process at a time, files whole or not at all, checkpoints that are there or are not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sparring.errors import JournalError, RunLocked
from sparring.learner.folder import RunFolder, write_whole


async def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    async with RunFolder.held(tmp_path / "runs" / "one") as folder:
        assert folder.path == tmp_path / "runs" / "one" and folder.path.is_dir()
        with pytest.raises(RunLocked, match="in use by another process"):
            async with RunFolder.held(tmp_path / "runs" / "one"):
                raise AssertionError("two hold it")
        async with RunFolder.held(tmp_path / "runs" / "two"):
            """Another folder is free."""
    async with RunFolder.held(tmp_path / "runs" / "one"):
        """It is free again."""


async def test_a_folder_is_let_go_when_something_fails(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            async with RunFolder.held(tmp_path / "one"):
                raise ZeroDivisionError


HOLDS = """
import sys
from pathlib import Path
import anyio
from sparring.learner.folder import RunFolder

async def main():
    async with RunFolder.held(Path(sys.argv[1])):
        print("held", flush=True)
        await anyio.sleep(60)

anyio.run(main)
"""


async def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path / "one"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(RunLocked, match=r"'.*one'"):
        async with RunFolder.held(tmp_path / "one"):
            raise AssertionError("two hold it")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    async with RunFolder.held(tmp_path / "one"):
        """The killed process holds nothing."""


async def test_a_relative_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend takes a relative path for a name of its own: checkpoints would lie elsewhere, unfound by a resume."""
    monkeypatch.chdir(tmp_path)
    async with RunFolder.held(Path("runs/one")) as folder:
        assert folder.checkpoint("alice", 3) == tmp_path / "runs/one/checkpoints/alice/3"
        assert folder.journal == tmp_path / "runs/one/journal.db"


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(JournalError, match="cannot be made"):
            async with RunFolder.held(path):
                raise AssertionError("nothing is held")


def checkpoint(folder: RunFolder, step: int) -> Path:
    path = folder.fresh_checkpoint("alice", step)
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "weights").write_text(str(step))
    return path


def test_what_a_crash_left_is_no_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    half = checkpoint(folder, 3)
    assert folder.fresh_checkpoint("alice", 3) == half and not half.exists()


def test_pruning_keeps_what_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    paths = [checkpoint(folder, step) for step in (1, 2, 10)]
    (tmp_path / "checkpoints" / "alice" / "notes").mkdir()
    folder.prune("alice", {0, 2, 10})
    assert [path.exists() for path in paths] == [False, True, True]
    assert (tmp_path / "checkpoints" / "alice" / "notes").exists(), "what is no checkpoint is nobody's business"


def test_a_checkpoint_that_is_being_deleted_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed half-way through a deletion, the folder must not look whole; whoever goes on finishes it."""
    folder = RunFolder(tmp_path)
    path = checkpoint(folder, 1)

    def killed(what: Path) -> None:
        (what / "deep" / "weights").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("shutil.rmtree", killed)
        folder.prune("alice", {0})
    assert not path.exists() and [one.name for one in path.parent.iterdir()] == [".1.pruned"]
    folder.sweep()
    assert list(path.parent.iterdir()) == []


def test_what_was_half_written_is_swept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.sweep()
    kept = [checkpoint(folder, 1), tmp_path / "checkpoints" / "alice" / ".notes"]
    kept[1].write_text("somebody's own")
    half = checkpoint(folder, 2).rename(kept[0].with_name(".2.new-0123abcd"))
    folder.sweep()
    assert not half.exists() and all(path.exists() for path in kept)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(JournalError, match=r"alice/1' cannot be written: .*free some disk space and resume"):
        folder.fresh_checkpoint("alice", 1)
    with pytest.raises(JournalError, match="alice"):
        folder.prune("alice", set())


def test_settings_are_written_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_settings({"name": "\u00e9", "steps": 3})
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == {"name": "\u00e9", "steps": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


FULL = """
import resource, sys
from pathlib import Path
from sparring.errors import JournalError
from sparring.learner.folder import write_whole
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_whole(Path(sys.argv[1]), "x" * 5000)
except JournalError as error:
    print(error)
"""


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_whole(path, "old")
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=True, timeout=60)
    assert "cannot be written" in done.stdout and "free some disk space" in done.stdout
    assert path.read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["run.json"]
