"""Every command: what it prints, how it ends, and that what goes wrong is one clear line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparring.cli.load import loaded
from sparring.cli.main import COMMANDS, EXAMPLES
from tests.cli.command import ENTRY, ENVIRONMENT, ROOT, sparring, write_run

HEAVY = ("torch", "transformers", "wandb", "sparring.cli.train")


def test_help_tells_every_command_with_examples(tmp_path: Path) -> None:
    done = sparring("--help", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for command, summary in COMMANDS.items():
        assert f"  {command}" in done.stdout
        assert summary in done.stdout
    assert EXAMPLES in done.stdout


def test_help_loads_no_model_library_and_no_command() -> None:
    program = (
        "import sys; from sparring.cli.main import main; main(['--help']); "
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd=ROOT, env=ENVIRONMENT)
    assert done.stdout.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(tmp_path: Path, command: str) -> None:
    done = sparring(command, "--help", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: sparring {command}")
    assert max(map(len, done.stdout.splitlines())) <= 128


def test_without_a_command_help_comes_and_the_code_says_usage(tmp_path: Path) -> None:
    done = sparring(folder=tmp_path)
    assert done.returncode == 2
    assert "commands:" in done.stdout


def test_the_version(tmp_path: Path) -> None:
    done = sparring("--version", folder=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("sparring ")


USAGE = [
    (("trian",), "sparring: no command 'trian'; did you mean 'train'?"),
    (("xyz",), "sparring: no command 'xyz'; there are demo, train, fit, play, check, eval, replay"),
    (("train",), "sparring train: the following arguments are required: FILE[:NAME]"),
    (("train", "--steps", "3", "words.py"), "sparring train: '--steps' comes before the file: write FILE first"),
    (("train", "none.py"), "file 'none.py' does not exist: give a Python file"),
    (("train", "words.txt"), "file 'words.txt' is no Python file: it must end in .py"),
    (("train", "words.py:runn"), "words.py has no Run 'runn'; did you mean words.py:run?"),
    (("train", "words.py:letters"), "words.py:letters is a FunctionEnvironment: give a Run"),
    (("train", "words.py", "--step", "3"), "--step: Run has no 'step'; did you mean --steps?"),
    (("train", "words.py", "--steps", "many"), "--steps 'many': must be a whole number (it is 6)"),
    (("train", "words.py", "--steps"), "--steps 'true': must be a whole number"),
    (("train", "words.py", "--steps", "0"), "steps=0: must be "),
    (("train", "words.py", "--train.environment.needs", "b"), "did you mean --train.environment.need?"),
    (("train", "words.py", "3"), "unexpected argument '3': settings are given as --field value"),
    (("train", "words.py", "--wandb", "sometimes"), "argument --wandb: invalid choice: 'sometimes'"),
    (("demo", "--sampler", "magic"), "argument --sampler: invalid choice: 'magic'"),
    (("play", "words.py", "--seat", "reader=human"), "--seat 'reader=human': the seats are writer"),
    (("play", "words.py", "--seat", "writer=ghost"), "'ghost' cannot play here; it is one of human, script"),
    (("play", "words.py", "--task", "50"), "--task 50: there are 50 tasks, numbered from 0"),
    (("play", "words.py", "--task", "soon"), "--task 'soon': JSON is malformed"),
    (("play", "words.py:letters"), "--task '0': Expected `object`, got `int`; give a task as JSON"),
    (("play", "words.py", "--seed", "x"), "argument --seed: invalid int value: 'x'"),
    (("eval",), "the following arguments are required"),
    (("replay", "runs/a", "more"), "unrecognized arguments: more"),
]


@pytest.mark.parametrize(("words", "message"), USAGE, ids=[" ".join(words) for words, _ in USAGE])
def test_wrong_usage_is_said_with_the_remedy(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    write_run(tmp_path)
    (tmp_path / "words.txt").touch()
    done = sparring(*words, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_several_runs_in_a_file_want_a_name(tmp_path: Path) -> None:
    more = "\nfrom dataclasses import replace\nother = replace(run, name='other')\nsame = run\n"
    write_run(tmp_path, more)
    done = sparring("train", "words.py", folder=tmp_path)
    assert done.returncode == 2
    assert "words.py defines several (run, other, same): name one, as in words.py:run" in done.stderr
    done = sparring("train", "words.py:other", "--steps=1", folder=tmp_path)
    assert done.returncode == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


def test_a_second_name_for_the_same_run_is_no_second_run(tmp_path: Path) -> None:
    write_run(tmp_path, "\nsame = run\n")
    assert sparring("train", "words.py", "--steps", 1, folder=tmp_path).returncode == 0


def test_a_file_without_a_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.py").touch()
    done = sparring("train", "empty.py", folder=tmp_path)
    assert done.returncode == 2
    assert "empty.py defines no Run at its top level" in done.stderr


def test_a_file_that_hides_a_module_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, name="json.py")
    done = sparring("train", "json.py", folder=tmp_path)
    assert done.returncode == 2
    assert "has the name of the module 'json', which is in use: rename the file" in done.stderr


def test_a_file_finds_its_neighbours(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "neighbour.py").write_text("STEPS = 2\n")
    write_run(
        elsewhere, "\nimport neighbour\nfrom dataclasses import replace\nrun = replace(run, steps=neighbour.STEPS)\n"
    )
    done = sparring("train", "elsewhere/words.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(2 steps, " in done.stdout.splitlines()[-1]


def test_what_a_file_refuses_is_one_line(tmp_path: Path) -> None:
    write_run(tmp_path, "\nPolicy('m', learning_rate=0)\n")
    done = sparring("train", "words.py", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("sparring train: learning_rate=0: must be ")
    assert len(done.stderr.splitlines()) == 1


def test_what_a_file_breaks_with_keeps_its_traceback(tmp_path: Path) -> None:
    write_run(tmp_path, "\n1 / 0\n")
    done = sparring("train", "words.py", folder=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_below_the_output_is_one_line(tmp_path: Path) -> None:
    write_run(tmp_path)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*ENTRY, "train", "words.py"],
            check=False,
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env=ENVIRONMENT,
        )
    assert done.returncode == 1
    assert done.stderr == "sparring train: no space left on the device: free some and run the same command again\n"


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    """The run goes on without its display; only the code says that nobody read the end."""
    write_run(tmp_path)
    command = '"$@" train words.py | head -1; exit "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", command, "-", *ENTRY],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT,
    )
    assert done.returncode == 141
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert (tmp_path / "runs" / "letters" / "report.html").is_file()


def test_a_file_is_compiled_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed within a second, and as long as before: Python's own cache would take it for the same."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "changing.py"
    for value in (1, 2):
        path.write_text(f"value = {value}\n")
        os.utime(path, (10**9, 10**9))
        assert vars(loaded(path))["value"] == value
        del sys.modules["changing"]
