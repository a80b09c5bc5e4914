"""`sparring check`: a table for each environment of the file, and an exit code that says whether all is well."""

from pathlib import Path

from tests.cli.command import ROOT, sparring, write_run

LUCK = """
import random


@environment
async def lucky(task: Word, writer: Seat) -> float:
    await writer.ask(f"{task.text} {random.random()}")
    return 0.0


chance = Episodes(lucky, [Word("one")])
"""


def test_an_environment_that_keeps_its_contract(tmp_path: Path) -> None:
    done = sparring("check", ROOT / "examples" / "addition.py", "--count", 2, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == "addition: 8 passed, 0 failed, 0 not checked"
    names = ["plays", "rewards", "replay", "interleaving", "hidden", "gold", "hostile", "event loop", "speed"]
    assert [line[:13].strip() for line in lines[1:10]] == names


def test_what_fails_is_told_with_its_place_and_the_exit_code(tmp_path: Path) -> None:
    write_run(tmp_path, LUCK)
    done = sparring("check", "words.py:chance", folder=tmp_path)
    assert done.returncode == 1 and done.stderr == ""
    assert done.stdout.startswith("lucky: ")
    assert (
        "replay        failed" in done.stdout
        and "writer, context 0, turn 0, attempt 0 was asked 'one 0." in done.stdout
    )


def test_a_run_is_checked_once_for_each_environment(tmp_path: Path) -> None:
    """Its own rules take any reply that holds an "a", which the battery finds."""
    write_run(tmp_path)
    done = sparring("check", "words.py:run", "--count", 1, folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("letters(fail=False, need='a'): ") == 1
    assert "which scores 1 as if it were right" in done.stdout


def test_tasks_may_be_given_for_an_environment_alone(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = sparring("check", "words.py:letters", "--task", '{"text": "mine"}', folder=tmp_path)
    assert "2 episodes of 1 tasks" in done.stdout


def test_wrong_usage(tmp_path: Path) -> None:
    write_run(tmp_path)
    for words, says in (
        (("words.py:letters",), "letters comes without tasks: give them as --task JSON"),
        (("words.py", "--task", "1"), "--task '1': tasks are given for an Environment; this has its own"),
        (("none.py",), "does not exist"),
    ):
        done = sparring("check", *words, folder=tmp_path)
        assert done.returncode == 2 and says in done.stderr
    done = sparring("check", "words.py", "--count", "0", folder=tmp_path)
    assert done.returncode == 1 and "count=0" in done.stderr
