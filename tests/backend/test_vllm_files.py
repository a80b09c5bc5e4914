"""Adapters on their way to vLLM: private, never under one name twice, gone at the end, also after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sparring.backend.vllm.files import IN_MEMORY, WeightsFolder, usual_parent
from sparring.errors import BackendError
from tests.disks import small_disk

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}


def test_each_version_has_a_name_a_number_and_a_path_of_its_own(tmp_path: Path) -> None:
    folder, other = WeightsFolder(tmp_path), WeightsFolder(tmp_path)
    first, second = folder.write(FILES, version=0), folder.write(FILES, version=1)
    folder.remove(first)
    third, elsewhere = folder.write(FILES, version=2), other.write(FILES, version=0)
    written = [first, second, third, elsewhere]
    assert len({file.name for file in written}) == len({file.folder for file in written}) == 4
    assert [(file.number, file.version) for file in (first, second, third)] == [(1, 0), (2, 1), (3, 2)]
    assert folder.reserve() == (third.name.removesuffix("3") + "4", 4), (
        "a name for what is no version comes from the same count"
    )
    assert not first.folder.exists()
    assert {path.name: path.read_bytes() for path in third.folder.iterdir()} == FILES
    folder.close()
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_it_is_private_and_in_memory_where_that_can_be(tmp_path: Path) -> None:
    folder = WeightsFolder(tmp_path)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.write(FILES, version=0).folder.stat().st_mode & 0o777 == 0o700
    folder.close()
    assert usual_parent() == IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else usual_parent().is_dir()


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from sparring.backend.vllm.files import WeightsFolder\n"
        f"folder = WeightsFolder(Path({str(tmp_path)!r})); folder.write({{'weights': b'1'}}, version=0)\n"
        "print(folder.path, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        living = WeightsFolder(tmp_path)
        assert left.is_dir(), "a folder was taken from a process that lives"
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert left.is_dir()
    WeightsFolder(tmp_path).close()
    assert not left.exists()
    assert living.path.is_dir()
    living.close()


def test_a_full_disk_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    folder = WeightsFolder(tmp_path)
    with pytest.raises(BackendError, match="make room"):
        folder.write({"no/such/folder": b"1"}, version=0)
    assert [path.name for path in folder.path.iterdir()] == ["lock"]
    folder.close()


def test_a_version_that_does_not_fit_is_named_and_the_next_has_its_place(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 64) as disk:
        folder = WeightsFolder(disk)
        first = folder.write({"adapter": bytes(30_000)}, version=0)
        with pytest.raises(BackendError, match=rf"cannot be written to '{folder.path}/.*No space left.*make room"):
            folder.write({"adapter": bytes(45_000)}, version=0)
        folder.remove(first)
        second = folder.write({"adapter": bytes(45_000)}, version=0)
        assert (second.folder / "adapter").stat().st_size == 45_000 and second.number == 3
        folder.close()
