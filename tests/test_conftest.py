"""The checks that the test run makes on itself, each seen to fail."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest
import sniffio

ROOT = Path(__file__).parent.parent


def run_tests(folder: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run one test module in a project of its own that has this project's settings and conftest."""
    tests = folder / "tests" / "learner"
    tests.mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    (tests / "test_planted.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=120)


MODEL_TEST = "import pytest\n@pytest.mark.{}\ndef test_it():\n    {}\n"


@pytest.mark.parametrize(
    ("source", "fails_with"),
    [
        (MODEL_TEST.format("slow", "pass"), None),
        (MODEL_TEST.format("slow", "pytest.skip('no weights')"), "test_it was skipped"),
        (MODEL_TEST.format("autojump", "pass"), "--must-run=slow: no test with this marker ran"),
        (MODEL_TEST.format("unheard_of", "pass"), "'unheard_of' not found in `markers`"),
    ],
    ids=["it runs", "it is skipped", "there is none", "unknown marker"],
)
def test_must_run(tmp_path: Path, source: str, fails_with: str | None) -> None:
    done = run_tests(tmp_path, source, "--must-run=slow")
    assert (done.returncode == 0) == (fails_with is None), done.stdout
    assert fails_with is None or fails_with in done.stdout


@pytest.mark.parametrize(("body", "passes"), [("pass", True), ("pytest.skip('no weights')", False)])
def test_must_run_hears_of_tests_that_other_processes_run(tmp_path: Path, body: str, passes: bool) -> None:
    done = run_tests(tmp_path, MODEL_TEST.format("slow", body), "--must-run=slow", "--numprocesses=2")
    assert (done.returncode == 0) is passes, done.stdout
    assert passes or "test_it was skipped" in done.stdout


def test_a_test_whose_packages_are_missing_is_skipped_and_missed(tmp_path: Path) -> None:
    hide = (
        "import importlib.util as u; found = u.find_spec; u.find_spec = lambda n: None if n == 'torch' else found(n)\n"
    )
    (tmp_path / "hide_torch.py").write_text(hide)
    done = run_tests(tmp_path, MODEL_TEST.format("model", "pass"), "-p", "hide_torch", "--must-run=model")
    assert "not installed: torch" in done.stdout
    assert done.returncode == 1


def test_warnings_are_errors(tmp_path: Path) -> None:
    done = run_tests(tmp_path, "import warnings\ndef test_it():\n    warnings.warn('old')\n")
    assert done.returncode == 1
    assert "UserWarning: old" in done.stdout


def test_a_blocking_call_of_sparring_in_the_event_loop_is_an_error(tmp_path: Path) -> None:
    package = tmp_path / "sparring"
    package.mkdir()
    (package / "__init__.py").write_text("import time\ndef nap():\n    time.sleep(0.001)\n")
    done = run_tests(tmp_path, "import sparring\nasync def test_it():\n    sparring.nap()\n")
    assert "BlockingError: Blocking call to time.sleep" in done.stdout
    assert "1 failed, 1 passed" in done.stdout  # trio runs the same code; only asyncio can tell


async def test_async_tests_run_on_both_event_loops(anyio_backend_name: str) -> None:
    assert sniffio.current_async_library() == anyio_backend_name


@pytest.mark.autojump
async def test_autojump_skips_the_wait_on_trio(anyio_backend_name: str) -> None:
    seconds = 3600 if anyio_backend_name == "trio" else 0
    started = time.monotonic()
    await anyio.sleep(seconds)
    assert time.monotonic() - started < 600
