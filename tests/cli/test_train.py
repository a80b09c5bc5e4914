"""`sparring train`: a run from its first line to its last, killed, interrupted, resumed, and refused."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from sparring.learner import PRESETS
from sparring.learner.display import COLUMNS
from tests.cli.command import ENTRY, ENVIRONMENT, RUN, sparring, write_run

SLOW = """
import anyio

@environment
async def slow(task: Word, writer: Seat) -> float:
    reply = await writer.ask(task.text)
    await anyio.sleep(0.02)
    return float("a" in reply.text)

run = Run(
    name="slow", train=Episodes(slow, [Word(str(n)) for n in range(50)]), policies=Policy("none"), steps=400,
    held_out=Episodes(slow, [Word(f"unseen {n}") for n in range(5)]), groups_per_step=2, group_size=2,
    evaluate_every=200, max_concurrent=2, backend=ScriptedModels(),
)
"""


def version_of(row: str) -> int:
    """The step that a row of the table shows, -1 for other lines."""
    first = row.split(maxsplit=1)[0] if row.split() else ""
    return int(first.partition("/")[0]) if first.partition("/")[0].isdecimal() else -1


def test_a_run_shows_settings_steps_and_what_came_of_it(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = sparring("train", "words.py", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("policy: model=none ")
    assert "steps=6 groups_per_step=2 group_size=4" in lines[1]
    assert lines[2].startswith("train/0: words:letters fail=False need=a tasks=50")
    assert [version_of(line) for line in lines if version_of(line) >= 0] == list(range(7))
    assert lines[-2] == "report: runs/letters/report.html"
    assert lines[-1].startswith("held-out reward: 0.")
    assert lines[-1].endswith(" s)")
    assert "(6 steps, " in lines[-1]


def test_a_run_leaves_its_files(tmp_path: Path) -> None:
    write_run(tmp_path)
    sparring("train", "words.py", folder=tmp_path)
    folder = tmp_path / "runs" / "letters"
    assert {"run.json", "journal.db", "metrics.jsonl", "report.html", "checkpoints"} <= {
        path.name for path in folder.iterdir()
    }
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sorted(line["version"] for line in lines if line["kind"] == "step") == [1, 2, 3, 4, 5, 6]
    assert [line["version"] for line in lines if line["kind"] == "evaluation"] == [0, 3, 6]
    assert "<h1>Greedy reward on 20 held-out tasks" in (folder / "report.html").read_text()


def test_overrides_reach_the_run(tmp_path: Path) -> None:
    write_run(tmp_path)
    words = (
        "--steps",
        2,
        "--name=other",
        "--train.environment.need",
        "b",
        "--policies.lora.rank",
        4,
        "--deterministic",
    )
    done = sparring("train", "words.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    described = json.loads((tmp_path / "runs" / "other" / "run.json").read_text())
    assert described["settings"]["steps"] == 2
    assert described["settings"]["deterministic"] is True
    assert described["settings"]["policies"]["policy"]["lora"]["rank"] == 4
    assert described["episodes"]["train/0"]["environment"]["settings"]["need"] == "b"
    assert described["episodes"]["held_out/held-out"]["environment"]["settings"]["need"] == "a"


def test_a_complete_run_is_not_trained_again(tmp_path: Path) -> None:
    write_run(tmp_path)
    first = sparring("train", "words.py", folder=tmp_path)
    metrics = (tmp_path / "runs" / "letters" / "metrics.jsonl").read_text()
    again = sparring("train", "words.py", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert [line for line in again.stdout.splitlines() if version_of(line) > 0] == []
    assert (tmp_path / "runs" / "letters" / "metrics.jsonl").read_text() == metrics


def test_other_settings_under_the_same_name_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    sparring("train", "words.py", folder=tmp_path)
    done = sparring("train", "words.py", "--seed", 1, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("sparring train: runs/letters was started with seed = 0, now ")
    assert len(done.stderr.splitlines()) == 1


def changed_run(folder: Path, old: str, new: str) -> None:
    """The run's file with other code."""
    assert old in RUN
    (folder / "words.py").write_text(RUN.replace(old, new))


def test_changed_code_is_refused_unless_accepted(tmp_path: Path) -> None:
    write_run(tmp_path)
    sparring("train", "words.py", folder=tmp_path)
    changed_run(tmp_path, "need in reply.text", "need in reply.text.lower()")
    done = sparring("train", "words.py", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "sparring train: runs/letters: changed since the run was started, or since a change was"
    )
    assert (
        "last accepted: environment of train/0 (words:letters), environment of held_out/held-out (words:letters); "
        in done.stderr
    )
    assert "restore it, or go on all the same with --accept-changed-code" in done.stderr
    accepted = sparring("train", "words.py", "--accept-changed-code", folder=tmp_path)
    assert accepted.returncode == 0, accepted.stderr
    assert "accepted: goes on although these changed: environment of train/0 (words:letters), " in accepted.stdout
    again = sparring("train", "words.py", folder=tmp_path)
    assert (again.returncode, again.stderr) == (0, ""), "it is accepted once and for all"
    assert "accepted" not in again.stdout
    replayed = sparring("replay", "runs/letters", folder=tmp_path)
    assert replayed.returncode == 0
    assert "admissions: goes on although these changed: environment of train/0 (words:letters)" in replayed.stdout
    write_run(tmp_path)
    assert sparring("train", "words.py", folder=tmp_path).returncode == 1, "what was accepted is what counts"


def test_changed_tasks_are_named(tmp_path: Path) -> None:
    write_run(tmp_path)
    sparring("train", "words.py", folder=tmp_path)
    changed_run(tmp_path, 'f"word {n}"', 'f"WORD {n}"')
    done = sparring("train", "words.py", folder=tmp_path)
    assert done.returncode == 1
    assert "last accepted: tasks of train/0; restore it" in done.stderr


def test_what_is_no_part_of_the_environment_may_change(tmp_path: Path) -> None:
    write_run(tmp_path)
    sparring("train", "words.py", folder=tmp_path)
    changed_run(tmp_path, "evaluate_every=3,", "evaluate_every=3, max_concurrent=3,  # fewer\n")
    done = sparring("train", "words.py", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_environment_that_fails_stops_the_run_with_its_message(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = sparring("train", "words.py", "--train.environment.fail", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("sparring train: ")
    assert "episodes failed, more than max_faults=0.1" in done.stderr
    assert "KeyError: 'planted'" in done.stderr
    assert 'File "' + str(tmp_path / "words.py") in done.stderr
    assert "anyio" not in done.stderr


def test_fields_of_a_run_are_listed(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = sparring("train", "words.py", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = done.stdout.partition("fields of this run, what they take, and what they are:")[2]
    assert [line.split() for line in listed.splitlines() if "--train.environment.need" in line] == [
        ["--train.environment.need", "text", "a"]
    ]
    assert "--policies.algorithm.loss.clip_high_threshold" in listed


# ----------------------------------------------------------------------------------------------------------- being ended


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Starts the slow run, each time anew; whatever still lives at the end is ended."""
    write_run(tmp_path, SLOW)
    alive: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*ENTRY, "train", "words.py"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        alive.append(process)
        return process

    yield start
    for process in alive:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until_step(process: "subprocess.Popen[str]", step: int) -> int:
    """Read its lines until a row shows at least this step; returns the step."""
    assert process.stdout is not None
    for line in process.stdout:
        if version_of(line) >= step:
            return version_of(line)
    raise AssertionError(f"it ended before step {step}: {process.communicate()[1]}")


def test_ctrl_c_finishes_the_step_and_the_same_command_goes_on(
    tmp_path: Path, started: Callable[[], "subprocess.Popen[str]"]
) -> None:
    process = started()
    until_step(process, 3)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == "interrupted: the step was finished and written; the same command goes on from it\n"
    stopped = max([version_of(line) for line in rest.splitlines()], default=3)
    assert (tmp_path / "runs" / "slow" / "report.html").is_file()
    lines = (tmp_path / "runs" / "slow" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["version"] for line in lines if '"kind":"step"' in line]
    assert steps == list(range(1, max(3, stopped) + 1))
    again = started()
    assert until_step(again, 1) == steps[-1] + 1


def test_ctrl_c_twice_ends_at_once(started: Callable[[], "subprocess.Popen[str]"]) -> None:
    process = started()
    until_step(process, 2)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_killed_and_started_again_it_goes_on_where_the_journal_ends(
    tmp_path: Path, started: Callable[[], "subprocess.Popen[str]"]
) -> None:
    process = started()
    seen = until_step(process, 3)
    process.kill()
    process.communicate()
    again = started()
    first = until_step(again, 1)
    assert first > seen
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=60)
    lines = (tmp_path / "runs" / "slow" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["version"] for line in lines if '"kind":"step"' in line]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= first
    replayed = sparring("replay", "runs/slow", folder=tmp_path)
    assert replayed.returncode == 0, replayed.stdout
    assert replayed.stdout.splitlines()[0].endswith("all agree")


def test_a_folder_in_use_is_refused(tmp_path: Path, started: Callable[[], "subprocess.Popen[str]"]) -> None:
    until_step(started(), 1)
    second = sparring("train", "words.py", folder=tmp_path)
    assert second.returncode == 1
    assert second.stderr == (
        "sparring train: run folder 'runs/slow' is in use by another process: wait for it, or use another name\n"
    )
    assert second.stdout == ""


def test_the_columns_of_the_table_are_those_that_were_asked_for() -> None:
    titles = [column.title for column in COLUMNS]
    assert titles == ["reward", "length", "cut", "mixed", "KL", "ESS", "stale", "|grad|", "tok/s", "idle", "left"]


# ----------------------------------------------------------------------------------------------------------- its algorithm


EVERY = """
import sys
from sparring.cli.main import main
from sparring.learner import PRESETS

for name in PRESETS:
    for correction in ([], ["--correction", "sequence"]):
        code = main(["train", "words.py", "--algorithm", name, *correction, "--steps", "2", "--groups_per_step", "4",
                     "--max_refill", "99", "--name", f"{name}{len(correction)}"])
        assert code == 0, (name, code)
"""


def test_every_algorithm_by_its_name(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = subprocess.run(
        [*ENTRY[:-1], EVERY], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=ENVIRONMENT
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name in PRESETS:
        described = json.loads((tmp_path / "runs" / f"{name}0" / "run.json").read_text())
        algorithm = described["settings"]["policies"]["policy"]["algorithm"]
        assert algorithm["name"] == name
        corrected = json.loads((tmp_path / "runs" / f"{name}2" / "run.json").read_text())
        loss = corrected["settings"]["policies"]["policy"]["algorithm"]["loss"]
        assert loss["level"] == "sequence" and loss["cap"] == 2.0


def test_an_algorithm_is_chosen_at_once_with_its_settings(tmp_path: Path) -> None:
    """What the file's algorithm could not do may fit the one that was named, and the other way round."""
    write_run(tmp_path)
    words = ("--algorithm", "rae", "--group_size", 1, "--policies.algorithm.advantages.decay", 0.5, "--steps", 1)
    done = sparring("train", "words.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    described = json.loads((tmp_path / "runs" / "letters" / "run.json").read_text())
    assert described["settings"]["policies"]["policy"]["algorithm"]["advantages"] == {
        "is": "RoleBaseline",
        "decay": 0.5,
        "given": [],
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--algorithm", "grop"), "--algorithm: invalid choice: 'grop'"),
        (("--correction", "token"), "--correction token: it belongs to --algorithm; name one of grpo, "),
        (("--algorithm", "decoupled_ppo"), "minibatches=4 of decoupled_ppo: a step has groups_per_step=2 units"),
        (("--algorithm", "rae", "--policies.algorithm.advantages.deviation"), "has no 'deviation'"),
    ],
)
def test_an_algorithm_that_cannot_be(tmp_path: Path, words: Sequence[str], said: str) -> None:
    write_run(tmp_path)
    done = sparring("train", "words.py", *words, folder=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "runs").exists()
