"""`play`, `eval`, `replay`, `demo` and `train --dry-run`."""

import re
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sparring.backend import reply_tokens
from sparring.backend.bytes_renderer import ByteRenderer
from sparring.cli.dry_run import renderer_of
from tests.cli.command import ENTRY, ENVIRONMENT, ROOT, sparring, write_run

GAME = """
@environment(zero_sum=("first", "second"))
async def highest(task: int, first: Seat, second: Seat, *, turns: int = 2) -> dict[Seat, float]:
    taken = {}
    for seat in (first, second):
        for _ in range(turns):
            taken[seat] = await seat.pick(f"Task {task}.", ("one", "two", "three")) or "one"
    order = ("one", "two", "three")
    value = float(order.index(taken[first]) - order.index(taken[second]))
    return {first: value, second: -value}


pairs = Episodes(highest, range(10), lineup={})
"""


def test_a_script_plays_when_nobody_else_does(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = sparring("play", "words.py", "--task", 3, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == 'task: {"text":"word 3"}'
    assert lines[1] == "--- writer"
    assert lines[2].split(maxsplit=1) == ["user", "Say a and word 3."]
    assert lines[3].startswith("writer")
    assert lines[4] == "---"
    assert lines[5].startswith("reward of writer: ")


def test_the_same_seed_plays_the_same_and_another_plays_otherwise(tmp_path: Path) -> None:
    write_run(tmp_path)
    plays = [sparring("play", "words.py", "--seed", seed, folder=tmp_path).stdout for seed in (1, 1, 2, 3, 4)]
    assert plays[0] == plays[1]
    assert len(set(plays)) > 1


def test_a_person_plays_at_the_seat_they_took(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = sparring("play", "words.py", "--seat", "writer=human", folder=tmp_path, typed="a banana\n")
    assert done.returncode == 0, done.stderr
    assert "[writer] Say a and word 0." in done.stdout
    assert re.search(r"^writer +a banana$", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1] == "reward of writer: 1"


def test_a_script_picks_what_it_is_offered(tmp_path: Path) -> None:
    write_run(tmp_path, GAME.replace("lineup={}", ""))
    done = sparring("play", "words.py:highest", "--task", "7", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "illegal: 0" in done.stdout
    said = re.findall(r"^(?:first|second) +(\w+)$", done.stdout, re.MULTILINE)
    assert len(said) == 4
    assert set(said) <= {"one", "two", "three"}


def test_a_task_can_be_given_as_json(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = sparring("play", "words.py:letters", "--task", '{"text": "mine"}', folder=tmp_path)
    assert "Say a and mine." in done.stdout
    done = sparring("play", "words.py", "--task", '{"text": 1}', folder=tmp_path)
    assert done.returncode == 2
    assert "Expected `str`, got `int` - at `$.text`; give a number of the run's tasks, or a task as JSON" in done.stderr


def test_an_episodes_can_be_played_by_name(tmp_path: Path) -> None:
    write_run(tmp_path, GAME.replace(", lineup={}", ""))
    done = sparring("play", "words.py:pairs", "--task", 9, folder=tmp_path)
    assert "Task 9." in done.stdout


def test_what_an_environment_raises_in_play_keeps_its_traceback(tmp_path: Path) -> None:
    write_run(tmp_path, "\nlost = letters(fail=True)\n")
    done = sparring("play", "words.py:lost", "--task", '{"text": "x"}', folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "KeyError: 'planted'"


def test_evaluations_are_shown_as_a_table(tmp_path: Path) -> None:
    write_run(tmp_path)
    sparring("train", "words.py", folder=tmp_path)
    by_folder = sparring("eval", "runs/letters", folder=tmp_path)
    assert by_folder.returncode == 0, by_folder.stderr
    header, *rows = by_folder.stdout.splitlines()
    assert header.split() == ["held-out", "version", "value", "mean", "95", "%", "interval", "tasks"]
    assert [row.split()[1] for row in rows] == ["0", "3", "6"]
    for row in rows:
        assert header.index("tasks") == row.index("20", header.index("tasks"))
    assert sparring("eval", "words.py", folder=tmp_path).stdout == by_folder.stdout


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for command in ("eval", "replay"):
        done = sparring(command, "runs/none", folder=tmp_path)
        assert done.returncode == 1
        assert done.stderr == (
            f"sparring {command}: run folder 'runs/none' has no journal.db: give the folder of a run, as in runs/addition\n"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_evaluations_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, "\nfrom dataclasses import replace\nrun = replace(run, held_out=None)\n")
    assert (
        "training reward (no held-out tasks)" in sparring("train", "words.py", folder=tmp_path).stdout.splitlines()[-1]
    )
    done = sparring("eval", "runs/letters", folder=tmp_path)
    assert done.returncode == 1
    assert "holds no evaluations yet" in done.stderr


def test_replay_agrees_and_sees_what_was_changed(tmp_path: Path) -> None:
    write_run(tmp_path)
    sparring("train", "words.py", folder=tmp_path)
    done = sparring("replay", "runs/letters", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].endswith("6 steps decided again, 1 snapshot folded again: all agree")
    database = sqlite3.connect(tmp_path / "runs" / "letters" / "journal.db")
    needle = b"\xa6reward\xcb"  # a msgpack key and the head of its float
    number, blob = next(row for row in database.execute("SELECT number, blob FROM segments") if needle in row[1])
    place = blob.index(needle) + len(needle)
    changed = blob[: place + 7] + bytes([blob[place + 7] ^ 1]) + blob[place + 8 :]
    database.execute("UPDATE segments SET blob = ? WHERE number = ?", (changed, number))
    database.commit()
    database.close()
    done = sparring("replay", "runs/letters", folder=tmp_path)
    assert done.returncode == 1
    assert "reward = " in done.stdout


def test_replay_trains_every_step_again_where_it_is_told_to(tmp_path: Path) -> None:
    write_run(tmp_path)
    sparring("train", "words.py", "--steps", 3, folder=tmp_path)
    again = ("replay", "runs/letters", "--run", "words.py", "--weights")
    done = sparring(*again, "--steps", 3, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "trained again from the journal: 3 steps of 1 policies: all agree"
    done = sparring(*again, folder=tmp_path)
    assert done.returncode == 1
    assert "was started with steps = 3, now 6" in done.stderr
    done = sparring("replay", "runs/letters", "--weights", folder=tmp_path)
    assert done.returncode == 2
    assert "name the file that defines the run too, --run FILE" in done.stderr


def test_the_demo_is_the_example(tmp_path: Path) -> None:
    done = sparring("demo", "--steps", "many", folder=tmp_path)
    assert done.returncode == 2
    assert "--steps 'many': must be a whole number" in done.stderr
    for command in (("demo", "--dry-run"), ("train", ROOT / "examples" / "addition.py", "--dry-run")):
        words = ("--policies.model", "some/model", "--group_size", 2)
        assert sparring(*command, *words, folder=tmp_path).stdout.startswith("the first group of 'addition': task ")


# --------------------------------------------------------------------------------------------------------------- dry run

ROW = re.compile(r"^ +(\d+) +(\d+) +(yes|-)(?: +([+-]\d+\.\d+) +(\S+))? +(\S.*)$")


def parsed(text: str) -> list[list[tuple[int, int, bool, float, float, str]]]:
    """The tables: per context its rows (place, token, action, advantage, weight, text); prompts left out are repeated."""
    contexts: list[list[tuple[int, int, bool, float, float, str]]] = []
    for line in text.splitlines():
        if line.startswith("    place"):
            contexts.append([])
        elif line.endswith("the same prompt as above"):
            last = int(line.split()[2].removesuffix(":"))
            contexts[-1] += [row for row in contexts[-2] if row[0] <= last]
        elif found := ROW.match(line):
            place, token, action, advantage, weight, shown = found.groups()
            contexts[-1].append(
                (int(place), int(token), action == "yes", float(advantage or 0), float(weight or 0), shown)
            )
    return contexts


def test_a_dry_run_shows_what_would_be_trained(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = sparring(
        "train", "words.py", "--dry-run", "--group_size", 6, "--policies.sampling.max_tokens", 7, folder=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "runs").exists()
    assert "tokens of the bytes renderer (the tokenizer of 'none' is not at hand" in done.stdout
    contexts = parsed(done.stdout)
    assert len(contexts) == 6
    rewards = [float(value) for value in re.findall(r"reward ([\d.]+),", done.stdout)]
    actions = sum(row[2] for context in contexts for row in context)
    assert "weight: 1 / action tokens of the update (here the update is this group alone)" in done.stdout
    assert f"{1 / actions:.3e}" in done.stdout
    renderer = ByteRenderer()
    for context, reward in zip(contexts, rewards, strict=True):
        assert [row[0] for row in context] == list(range(len(context)))
        prompt = [row[1] for row in context if not row[2]]
        said = renderer.text([row[1] for row in context if row[2]])
        assert renderer.text(prompt).startswith("Say a and word ")
        assert reward == float("a" in said)
        for _, _, action, advantage, weight, _ in context:
            assert weight == pytest.approx(1 / actions if action else 0, rel=1e-3)
            assert advantage == pytest.approx(reward - np.mean(rewards) if action else 0, abs=1e-4)
        assert [row[2] for row in context] == [False] * len(prompt) + [True] * (len(context) - len(prompt))
        assert 0 < sum(row[2] for row in context) <= 7


def test_equal_rewards_are_said_to_teach_nothing(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = sparring("train", "words.py", "--dry-run", "--train.environment.need", "~", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "  every advantage is 0: the rewards that are compared are equal"
    assert "+0.0000" in done.stdout


def test_episodes_that_fail_are_shown(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = sparring("train", "words.py", "--dry-run", "--train.environment.fail", "--group_size", 2, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no trajectory" in done.stdout
    assert "episode 0 failed (KeyError): Traceback" in done.stdout


def test_several_turns_and_seats_are_one_table_each(tmp_path: Path) -> None:
    more = GAME.replace("pairs = Episodes(highest, range(10), lineup={})", "") + (
        "run = Run(name='pairs', train=Episodes(highest, range(10)), policies=Policy('none'), steps=1, group_size=2)\n"
    )
    write_run(tmp_path, more)
    done = sparring("train", "words.py", "--dry-run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    contexts = parsed(done.stdout)
    assert len(contexts) == 4
    for context in contexts:
        pieces = "".join("A" if row[2] else "." for row in context)
        assert re.fullmatch(r"\.+A+\.+A+", pieces)


@pytest.mark.parametrize("text", ["", "7", "two words", "a\nb", "sm\u00f8rrebr\u00f8d \u2713"])
def test_a_reply_becomes_the_tokens_that_say_it(text: str) -> None:
    renderer = ByteRenderer()
    tokens = reply_tokens(renderer, text)
    assert tokens[-1] in renderer.stop_ids
    assert renderer.parse(tokens).text == text


@pytest.mark.model
@pytest.mark.parametrize("text", ["7", "-12", "The answer is 3.", "abc"])
def test_a_models_own_tokens_say_it_too(text: str) -> None:
    from sparring.backend.at_hand import renderer_at_hand
    from sparring.backend.models import SMOLLM2

    renderer = renderer_at_hand(SMOLLM2)
    assert renderer is not None
    tokens = reply_tokens(renderer, text)
    assert tokens[-1] in renderer.stop_ids
    assert renderer.parse(tokens).text == text
    assert renderer_at_hand("some/hub-model") is None
    assert not isinstance(renderer_of(SMOLLM2), ByteRenderer)


def test_a_model_that_may_have_to_be_fetched_is_shown_in_bytes_without_loading_torch(tmp_path: Path) -> None:
    write_run(tmp_path)
    program = (
        "import sys; from sparring.cli.main import main; main(['train', 'words.py', '--dry-run']); "
        "print('LOADED', 'torch' in sys.modules)"
    )
    command = [*ENTRY[:-1], program]
    done = subprocess.run(
        command, check=True, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=ENVIRONMENT
    )
    assert done.stdout.splitlines()[-1] == "LOADED False"


def test_the_entry_point_of_these_tests_is_the_installed_one() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert 'sparring = "sparring.cli.main:main"' in pyproject
    assert "from sparring.cli.main import main" in ENTRY[-1]
