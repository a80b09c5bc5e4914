"""`sparring fit`."""

from pathlib import Path

from tests.cli.command import sparring

FIT = '''
"""A fit without a model."""

from sparring import Fit, Lines, ScriptedModels

fit = Fit(name="warm", model="none", train=Lines("texts.jsonl"), batch_size=4, backend=ScriptedModels())
'''


def write_fit(folder: Path, count: int = 20) -> None:
    (folder / "warm.py").write_text(FIT)
    rows = [f'{{"prompt": "say {n}", "completion": "{n}"}}\n' for n in range(count)]
    (folder / "texts.jsonl").write_text("".join(rows))


def test_a_fit_is_made_and_shown(tmp_path: Path) -> None:
    write_fit(tmp_path)
    done = sparring("fit", "warm.py", "--epochs", 2, "--lora.rank", 4, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "step     0  held_out/loss 0"
    assert len(lines) == 11 + 2
    assert lines[-2] == f"weights: {tmp_path / 'runs' / 'warm' / 'final'}"
    assert (tmp_path / "runs" / "warm" / "final" / "weights.json").is_file()
    again = sparring("fit", "warm.py", "--epochs", 2, "--lora.rank", 4, folder=tmp_path)
    assert again.stdout.splitlines() == lines[-2:], "all its steps are made"
    other = sparring("fit", "warm.py", "--epochs", 3, "--lora.rank", 4, folder=tmp_path)
    assert other.returncode == 1
    assert "settings.epochs = 2, now 3" in other.stderr


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    write_fit(tmp_path)
    done = sparring("fit", "warm.py", "--epoch", 2, folder=tmp_path)
    assert done.returncode == 2
    assert "Fit has no 'epoch'; did you mean --epochs?" in done.stderr
    (tmp_path / "texts.jsonl").write_text('{"prompt": "a"}\n')
    done = sparring("fit", "warm.py", folder=tmp_path)
    assert done.returncode == 1
    assert "texts.jsonl, line 1: an object with the keys ['prompt']" in done.stderr
    assert sparring("fit", "--epochs", 2, folder=tmp_path).returncode == 2


def test_its_fields_are_listed(tmp_path: Path) -> None:
    write_fit(tmp_path)
    done = sparring("fit", "warm.py", "--help", folder=tmp_path)
    assert done.returncode == 0
    assert "fields of this fit, what they take" in done.stdout
    assert "--batch_size" in done.stdout
