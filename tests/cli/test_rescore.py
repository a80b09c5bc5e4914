"""`sparring rescore`: a run's folder on the disk, and its file as it is by now."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import RUN, sparring, write_run

EFFECTS = """
from sparring import effect

CALLS = []


async def called(text: str) -> float:
    with open("calls.txt", "a") as file:
        file.write(text.replace("\\n", " ") + "\\n")
    return float("a" in text)


@environment
async def judged(task: Word, writer: Seat) -> float:
    return await effect(called, (await writer.ask(task.text)).text)


other = Run(
    name="judged", train=Episodes(judged, [Word(f"word {n}") for n in range(9)]), policies=Policy("none"), steps=2,
    groups_per_step=2, group_size=2, backend=ScriptedModels(),
)
pairs = other.train
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that is complete; its file may be changed."""
    folder = tmp_path_factory.mktemp("trained")
    write_run(folder)
    assert sparring("train", "words.py", folder=folder).returncode == 0
    return folder


@pytest.fixture(autouse=True)
def as_it_was(trained: Path) -> Iterator[None]:
    yield
    write_run(trained)


def test_the_same_file_changes_nothing(trained: Path) -> None:
    done = sparring("rescore", "runs/letters", "words.py", folder=trained)
    assert (done.returncode, done.stderr) == (0, "")
    first, writer, steps = done.stdout.splitlines()
    assert first == "48 stored episodes scored again"
    found = re.fullmatch(r"writer: 48 equal, 0 higher, 0 lower; mean reward (\S+) -> (\S+)", writer)
    assert found and found[1] == found[2]
    assert steps == "steps of 'policy' with other advantages: 0 of 6"


def test_a_changed_verifier_is_reported(trained: Path) -> None:
    (trained / "words.py").write_text(RUN.replace("float(need in reply.text)", "float(need not in reply.text)"))
    done = sparring("rescore", "runs/letters", "words.py", "--json", "rows.jsonl", folder=trained)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in (trained / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 48
    assert all(row["before"] + row["after"] == 1.0 for row in rows)
    assert rows[0].keys() == {
        "group", "member", "source", "index", "seat", "fork", "label", "before", "after", "outcome", "detail",
    }  # fmt: skip
    higher = sum(row["outcome"] == "higher" for row in rows)
    lines = done.stdout.splitlines()
    assert lines[1].startswith(f"writer: 0 equal, {higher} higher, {48 - higher} lower; mean reward ")
    assert re.match(r"tasks with another mean reward: \d+", lines[2])
    assert re.match(r"  train/0 task \d+, writer: \d\.\d{3} -> \d\.\d{3} \(4 rewards\)$", lines[3])
    assert re.match(r"steps of 'policy' with other advantages: [1-6] of 6: ", lines[-1])


def test_settings_of_the_environment_are_set_as_in_train(trained: Path) -> None:
    """Other questions have no stored reply."""
    done = sparring("rescore", "runs/letters", "words.py", "--train.environment.need", "b", folder=trained)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1] == "writer: 0 equal, 0 higher, 0 lower, 48 asks"
    assert lines[2] == (
        "48 ask for a reply that the journal does not hold; group 0, episode 0: seat 'writer' asks something else at turn 0"
    )
    assert lines[3] == "steps of 'policy' with other advantages: 0 of 6; not known for 6: 0-5"
    failing = sparring("rescore", "runs/letters", "words.py", "--train.environment.fail", folder=trained)
    assert "48 fail now; group 0, episode 0: KeyError: 'planted'" in failing.stdout.splitlines()


def test_effects_and_episodes(tmp_path: Path) -> None:
    write_run(tmp_path, EFFECTS)
    assert sparring("train", "words.py:other", folder=tmp_path).returncode == 0
    calls = tmp_path / "calls.txt"
    made = len(calls.read_text().splitlines())
    anew = sparring("rescore", "runs/judged", "words.py:pairs", folder=tmp_path)
    assert "writer: 8 equal" in anew.stdout, anew.stderr
    assert len(calls.read_text().splitlines()) == made + 8
    sparring("rescore", "runs/judged", "words.py:other", "--effects", "journal", folder=tmp_path)
    assert len(calls.read_text().splitlines()) == made + 8


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("runs/none", "words.py"), 1, "run folder 'runs/none' has no journal.db"),
        (("runs/letters", "none.py"), 2, "file 'none.py' does not exist"),
        (("runs/letters", "words.py:letters"), 2, "words.py:letters is a FunctionEnvironment: give a Run or Episodes"),
        (("runs/letters", "words.py", "--train.environment.nedd", "b"), 2, "did you mean"),
        (("runs/letters", "words.py", "--effects", "never"), 2, "invalid choice: 'never'"),
        (("runs/letters",), 2, "required: FILE"),
        (("runs/letters", "words.py", "--json", "none/rows.jsonl"), 1, "--json 'none/rows.jsonl' cannot be written"),
    ],
)
def test_what_cannot_be_is_refused(trained: Path, words: tuple[str, ...], code: int, said: str) -> None:
    done = sparring("rescore", *words, folder=trained)
    assert done.returncode == code
    assert said in done.stderr, done.stderr


def test_fields_are_set_on_runs_alone(tmp_path: Path) -> None:
    write_run(tmp_path, EFFECTS)
    done = sparring("rescore", "runs/judged", "words.py:pairs", "--steps", "3", folder=tmp_path)
    assert done.returncode == 2
    assert "'--steps': words.py:pairs gives Episodes; fields are set where it gives a Run" in done.stderr
