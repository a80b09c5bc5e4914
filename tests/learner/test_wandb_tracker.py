"""The tracker with real wandb, offline: what it wrote can be read and synced, resumed runs go on, failures stop nothing."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytest.importorskip("wandb")

PROGRAM = """
import os, signal, sys
from pathlib import Path
from sparring.learner.wandb_tracker import WandbTracker
from sparring.rollout.events import encode, segment
from sparring.rollout.journal import SqliteSegments
from tests.learner.story import story

folder, mode, policies, start, end, ending = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(","), *sys.argv[4:7]
events = story(4, policies=tuple(policies))
tracker = WandbTracker(folder, "story", mode=mode, warn=lambda text: print("warned:", text))
tracker.opened(events[0].run)
store = SqliteSegments(folder / "journal.db")
for number, event in enumerate(events[int(start) : int(end) or len(events)]):
    store.append(segment([encode(event)]))
    if ending == "unlogged" and number > 20:
        continue
    if ending == "orphaned" and number == 30:
        import subprocess
        core = subprocess.run(["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True, text=True).stdout.split()
        for one in core:
            os.kill(int(one), signal.SIGKILL)
            os.waitpid(int(one), 0)
    tracker.event(event)
store.close()
if ending in ("killed", "unlogged"):
    os.kill(os.getpid(), signal.SIGKILL)
tracker.closed()
print("failures:", tracker.failures)
"""

READER = """
import json, sys
from pathlib import Path
from wandb.proto import wandb_internal_pb2

def records(data):
    # LevelDB's log format after a 7-byte head: blocks of 32 KiB; per piece 4 bytes crc, 2 length, 1 kind (1 whole, 2-4 parts)
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if kind == 0:
            return
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""

told = {"rows": [], "configs": [], "ids": []}
for path in sorted(Path(sys.argv[1]).glob("wandb/offline-run-*/*.wandb")):
    for record in records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            told["ids"].append(record.run.run_id)
            told["configs"].append({item.key: json.loads(item.value_json) for item in record.run.config.update})
        if kind == "history":
            items = record.history.item
            told["rows"].append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
print(json.dumps(told))
"""


def python(
    program: str, *arguments: object, blocked: bool = False, more: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    head = "import sys; sys.modules['wandb'] = None\n" if blocked else ""
    command = [sys.executable, "-c", head + program, *map(str, arguments)]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        "PYTHONPATH": str(ROOT),
        "WANDB_ERROR_REPORTING": "false",
        **(more or {}),
    }
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120, env=environment, stdin=subprocess.DEVNULL
    )


def told(folder: Path) -> dict[str, list[dict[str, object]]]:
    """What the offline files hold, read without the code that wrote them."""
    done = python(READER, folder)
    assert done.returncode == 0, done.stderr
    read: dict[str, list[dict[str, object]]] = json.loads(done.stdout)
    return read


def test_a_run_is_written_and_wandb_accepts_it(tmp_path: Path) -> None:
    done = python(PROGRAM, tmp_path, "offline", "policy", 0, 0, "")
    assert done.stdout == "failures: 0\n", done.stderr
    found = told(tmp_path)
    assert [row["version"] for row in found["rows"]] == [0, 1, 2, 3, 4, 4]
    assert [row["_step"] for row in found["rows"]] == list(range(6))
    steps = [row for row in found["rows"] if "train/reward" in row]
    assert {"train/length", "engine/kl", "engine/ess", "timing/tokens_per_second"} <= steps[0].keys()
    assert {"held_out/held-out/reward", "held_out/held-out/reward/low"} <= found["rows"][0].keys()
    settings = found["configs"][0]["settings"]
    assert isinstance(settings, dict)
    assert settings["steps"] == 4
    sync = [
        str(Path(sys.executable).with_name("wandb")),
        "sync",
        "--dry-run",
        *map(str, tmp_path.glob("wandb/offline-run-*")),
    ]
    listed = subprocess.run(sync, check=False, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "Would sync 1 run(s)" in listed.stdout + listed.stderr


@pytest.mark.parametrize("ending", ["killed", "unlogged"])
def test_a_killed_run_goes_on_under_its_id_without_a_gap(tmp_path: Path, ending: str) -> None:
    """`unlogged`: killed after lines were on the disk that the tracker had not been told of."""
    assert python(PROGRAM, tmp_path, "offline", "policy", 0, 45, ending).returncode == -9
    kept = json.loads((tmp_path / "wandb" / "sparring.json").read_text())
    done = python(PROGRAM, tmp_path, "offline", "policy", 45, 0, "")
    assert done.stdout == "failures: 0\n", done.stderr
    found = told(tmp_path)
    assert found["ids"] == [kept["id"]]
    assert [path.name for path in tmp_path.glob("wandb/superseded-*")] == [f"superseded-{kept['open']}"]
    assert [row["_step"] for row in found["rows"]] == list(range(6))
    assert [row["version"] for row in found["rows"]] == [0, 1, 2, 3, 4, 4]


def test_a_stopped_run_goes_on_under_its_id_in_a_second_part(tmp_path: Path) -> None:
    assert python(PROGRAM, tmp_path, "offline", "policy", 0, 45, "").stdout == "failures: 0\n"
    assert json.loads((tmp_path / "wandb" / "sparring.json").read_text())["logged"] == 2
    assert python(PROGRAM, tmp_path, "offline", "policy", 45, 0, "").stdout == "failures: 0\n"
    found = told(tmp_path)
    assert found["ids"][0] == found["ids"][1]
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2
    assert [row["_step"] for row in found["rows"]] == list(range(6))
    assert [row["version"] for row in found["rows"]] == [0, 1, 2, 3, 4, 4]


def test_several_policies_are_told_apart(tmp_path: Path) -> None:
    assert python(PROGRAM, tmp_path, "offline", "alice,bob", 0, 0, "").stdout == "failures: 0\n"
    rows = told(tmp_path)["rows"]
    assert sum("alice/train/reward" in row for row in rows) == 4
    assert sum("bob/engine/kl" in row for row in rows) == 4
    assert not any("train/reward" in row for row in rows)


def test_a_tracker_that_dies_is_counted_said_once_and_stops_nothing(tmp_path: Path) -> None:
    done = python(PROGRAM, tmp_path, "offline", "policy", 0, 0, "orphaned")
    assert done.returncode == 0, done.stderr
    warned, failures = done.stdout.splitlines()
    assert warned.startswith("warned: W&B: ")
    assert warned.endswith("; the run goes on, metrics.jsonl has every figure")
    assert int(failures.removeprefix("failures: ")) > 1


def test_without_an_account_online_is_refused_at_start(tmp_path: Path) -> None:
    done = python(PROGRAM, tmp_path, "online", "policy", 0, 0, "")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "sparring.errors.SettingError: W&B tracking (mode 'online') cannot start: No API key configured"
    )
    assert last.endswith("mode offline needs no account (--wandb offline)")


def test_a_server_that_cannot_be_reached_stops_nothing(tmp_path: Path) -> None:
    """The lines are there for a later sync."""
    away = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40, "WANDB_INIT_TIMEOUT": "3"}
    done = python(PROGRAM, tmp_path, "online", "policy", 0, 0, "", more=away)
    assert done.returncode == 0, done.stderr
    warned = "".join(done.stdout.partition("warned: ")[1:])
    assert warned.startswith("warned: W&B: it cannot be reached (") and "; lines are kept for `wandb sync " in warned
    assert done.stdout.splitlines()[-1] == "failures: 1"
    assert [row["version"] for row in told(tmp_path)["rows"]] == [0, 1, 2, 3, 4, 4]


def test_without_the_extra_one_message_names_it() -> None:
    done = python("import sparring.learner.wandb_tracker", blocked=True)
    assert done.returncode == 1
    expected = "sparring.errors.UnsupportedError: tracking to W&B needs 'wandb': pip install 'sparring[wandb]'"
    assert done.stderr.splitlines()[-1] == expected
