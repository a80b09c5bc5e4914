"""`sparring eval WHO FILE`: what is measured anew."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.agents.server import completion, serving
from tests.cli.command import sparring, write_run


def rows_of(text: str) -> tuple[list[str], list[list[str]]]:
    """The cells of the table's first line, and of the others, which stand apart by at least two blanks."""
    table = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]
    return table[0], [row for row in table[1:] if len(row) > 1]


def test_a_run_at_its_newest_step(tmp_path: Path) -> None:
    write_run(tmp_path)
    sparring("train", "words.py", folder=tmp_path)
    done = sparring("eval", "runs/letters", "words.py", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    header, (row,) = rows_of(done.stdout)
    assert header == ["held-out", "seat", "against", "mean", "pass@1", "tasks", "failed"]
    assert [*row[:3], *row[5:]] == ["held-out", "writer", "-", "20", "0"]
    told = sparring("eval", "runs/letters", folder=tmp_path).stdout.splitlines()[-1].split()
    assert row[3].split()[0] == told[3], "what the run measured at its last version"
    assert row[3] == row[4], "the mean of what is 0 or 1 is pass@1"
    assert done.stdout.splitlines()[-1] == "episodes: evaluations/runs-letters@6.jsonl"
    lines = (tmp_path / "evaluations" / "runs-letters@6.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 20
    again = sparring("eval", "runs/letters@6", "words.py", folder=tmp_path)
    assert again.stdout == done.stdout
    assert (tmp_path / "evaluations" / "runs-letters@6.jsonl").read_text().splitlines() == lines
    other = sparring("eval", "runs/letters@4", "words.py", folder=tmp_path)
    assert other.returncode == 1
    assert "runs/letters@4: no checkpoint of that step is kept" in other.stderr


def test_a_model_with_several_attempts(tmp_path: Path) -> None:
    write_run(tmp_path)
    words = ["eval", "any", "words.py", "--attempts", 4, "--temperature", 1, "--tasks", 5, "--k", "1,2,4"]
    done = sparring(*words, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    header, (row,) = rows_of(done.stdout)
    assert header[3:7] == ["mean", "pass@1", "pass@2", "pass@4"]
    one, two, four = (float(cell.split()[0]) for cell in row[4:7])
    assert one <= two <= four
    assert one < four
    episodes = [json.loads(line) for line in (tmp_path / "evaluations" / "any.jsonl").read_text().splitlines()[1:]]
    assert sorted((one["task"], one["attempt"]) for one in episodes) == [(t, a) for t in range(5) for a in range(4)]
    assert sparring(*words, "--success", 2, folder=tmp_path).stdout.splitlines()[1].count("0.00 [0.00, 0.43]") == 3


def test_an_endpoint(tmp_path: Path) -> None:
    write_run(tmp_path)

    def answer(asked: dict[str, Any]) -> tuple[int, Any]:
        assert asked["model"] == "qwen" and asked["authorization"] == ""
        return completion("a" if "unseen 3" in asked["messages"][-1]["content"] else "b")

    with serving(answer) as url:
        done = sparring("eval", url, "words.py", "--model", "qwen", "--out", "out.jsonl", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    _, (row,) = rows_of(done.stdout)
    assert row[3].startswith("0.05 [")
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert first["about"]["who"]["policy at 0.0"]["model"] == "qwen"


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["any", "words.py", "--attempts", 2], 1, "attempts=2 of greedy play in held-out 'held-out'"),
        (["any", "words.py", "--k", "2"], 1, "pass@2 with attempts=1"),
        (["any", "words.py", "--k", "one"], 2, "--k 'one': whole numbers"),
        (["any", "words.py", "--model", "m"], 2, "--model: it belongs to a URL"),
        (["http://localhost:1/v1", "words.py"], 2, "name the model that the endpoint is to use"),
        (
            ["http://localhost:1/v1", "words.py", "--model", "m", "--key-variable", "NO_SUCH"],
            2,
            "--key-variable NO_SUCH: there is no such environment variable",
        ),
        (["words.py", "--attempts", 2], 2, "--attempts 2: it belongs to an evaluation anew; name the FILE too"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, words: list[object], code: int, message: str) -> None:
    write_run(tmp_path)
    done = sparring("eval", *words, folder=tmp_path)
    assert done.returncode == code
    assert message in done.stderr


def test_a_run_that_holds_nothing_out(tmp_path: Path) -> None:
    write_run(tmp_path, "\nfrom dataclasses import replace\nrun = replace(run, held_out=None)\n")
    done = sparring("eval", "any", "words.py", folder=tmp_path)
    assert done.returncode == 1
    assert "its run holds nothing out: give it held_out, or name Episodes" in done.stderr
