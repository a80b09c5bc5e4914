"""examples/crash.py: real processes with the torch engine, killed with SIGKILL and gone on with; and what its checks find."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from sparring.learner.folder import RunFolder
from sparring.rollout.events import Checkpointed
from tests.backend.architectures import SIZES
from tests.backend.conftest import saved
from tests.examples.orphan import leaves_one
from tests.examples.short import example

crash = example("crash")
MODES = pytest.mark.parametrize("mode", [(), ("--deterministic",)], ids=["free", "deterministic"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny random model."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    return str(saved(model, tmp_path_factory.mktemp("models") / "tiny"))


def rows(out: str) -> list[tuple[str, str]]:
    """(name, verdict) of every check that was printed."""
    lines = [line for line in out.split("\n") if line.endswith(("holds", "FAILS"))]
    return [(line[2:36].strip(), line.split()[-1]) for line in lines]


@MODES
def test_a_few_kills(tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str], mode: tuple[str, ...]) -> None:
    words = [
        "--model",
        tiny,
        "--kills",
        "3",
        "--steps",
        "4",
        "--threads",
        "1",
        "--start",
        "forkserver",
        "--folder",
        str(tmp_path),
        *mode,
    ]
    code = crash.main(words)
    out = capsys.readouterr().out
    assert code == 0, out
    names = [name for name, _ in rows(out)]
    assert {"the journal only grew", "steps planned, then made", "trained again from the journal"} <= set(names)
    assert ("weights as undisturbed" in names) == bool(mode)
    assert {verdict for _, verdict in rows(out)} == {"holds"}
    assert "3 kills: every check holds" in out


@pytest.mark.slow
@MODES
def test_twenty_kills(tiny: str, capsys: pytest.CaptureFixture[str], mode: tuple[str, ...]) -> None:
    """Every life is a new interpreter, with another seed for its hashes."""
    code = crash.main(["--model", tiny, "--threads", "1", *mode])
    out = capsys.readouterr().out
    assert code == 0 and "20 kills: every check holds" in out, out


# -------------------------------------------------------------------------------------------------------- planted defects


def test_a_check_that_fails_ends_in_an_error(tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Planted: a file in the run's folder that is not the run's."""
    (tmp_path / "killed-0" / "crash").mkdir(parents=True)
    (tmp_path / "killed-0" / "crash" / "segment.partial").write_text("")
    words = [
        "--model",
        tiny,
        "--kills",
        "1",
        "--steps",
        "1",
        "--threads",
        "1",
        "--start",
        "forkserver",
        "--folder",
        str(tmp_path),
    ]
    assert crash.main(words) == 1
    out = capsys.readouterr().out
    assert [name for name, verdict in rows(out) if verdict == "FAILS"] == ["files of a run, and no others"]
    assert "segment.partial was left behind" in out and "SOME CHECKS FAIL" in out


def test_what_is_left_behind_is_found(tmp_path: Path) -> None:
    settings = crash.Settings(folder=tmp_path, model="none", steps=1, deterministic=False)
    run = settings.run("run")
    whole = [Checkpointed(policy="alice", step=1)]
    good = ["run.json", "journal.db", "metrics.jsonl", "report.html", "checkpoints/alice/1/weights"]
    bad = [
        "journal.db-wal",
        ".running",
        ".run.json.partial",
        "checkpoints/alice/2/weights",
        "checkpoints/bob/1/weights",
    ]
    bad += ["checkpoints/alice/.2.new-0123abcd/weights", "checkpoints/alice/1/.part"]
    for name in good + bad:
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("")
    (run.path / "checkpoints/alice/.3.new-0123abcd").mkdir()
    bad.append("checkpoints/alice/.3.new-0123abcd")
    verdict = crash.strays(run, whole)
    assert sorted(verdict.wrong) == sorted(f"{name} was left behind" for name in bad)
    for name in bad:
        path = run.path / name
        path.rmdir() if path.is_dir() else path.unlink()
    for name in ("alice/2", "alice/.2.new-0123abcd", "bob/1", "bob"):
        (run.path / "checkpoints" / name).rmdir()
    assert crash.strays(run, whole).holds


async def test_a_lock_that_is_held_is_found(tmp_path: Path) -> None:
    async with RunFolder.held(tmp_path / "run") as folder:
        assert not crash.lock_free(folder.path)
        (folder.path / "kept").write_text("")
    assert crash.lock_free(tmp_path / "run")


def test_processes_and_locks_that_are_left_fail(tmp_path: Path) -> None:
    settings = crash.Settings(folder=tmp_path, model="none", steps=1, deterministic=False)
    life = {"killed": True, "opened": 1.0, "seconds": 2.0}
    lives = [crash.Life(left=True, **life), crash.Life(left=False, **life)]
    told = crash.Told(part="run", run=settings.run("run"), lives=lives)
    told.locked = 1
    assert [verdict.holds for verdict in told.verdicts()] == [True, False, False]
    assert [verdict.figure for verdict in told.verdicts()] == ["2 kills", "1 of 2", "1 of 2"]
    told = crash.Told(part="run", run=settings.run("run"), lives=lives[1:], changed=["event 3 was ..."])
    assert [verdict.holds for verdict in told.verdicts()] == [False, True, True]


def test_a_process_that_outlives_its_leader_is_found_and_killed() -> None:
    process = get_context("forkserver").Process(target=leaves_one)
    process.start()
    process.join(60)
    assert process.exitcode == 0 and process.pid is not None and crash.alive(process.pid)
    assert crash.end(process)
    assert not crash.alive(process.pid)


def test_a_life_that_fails_is_no_kill(tmp_path: Path) -> None:
    settings = crash.Settings(folder=tmp_path, model=str(tmp_path / "nowhere"), steps=1, deterministic=False)
    with pytest.raises(RuntimeError, match="a life of broken ended with exit code 1"):
        crash.Lives("forkserver").one(settings, "broken")
