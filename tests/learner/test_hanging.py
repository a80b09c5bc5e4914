"""What hangs: watchers, models that are made, steps that are done again; named after the run's stall deadline, and never waited
for without end. What computes is no stall, however long it takes."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest

from sparring.backend import Datum, ForwardOutput, Lora, Loss, ScriptedBackend
from sparring.backend.scripted import ScriptedModel, babble
from sparring.backend.training import Pending
from sparring.errors import JournalError, Stalled, TooManyFaults
from sparring.learner import train_async
from sparring.learner.called import called
from sparring.rollout import MemorySegments
from sparring.rollout.events import AnyEvent, Stepped
from tests.learner.moods import WELL, always, run_of, trained
from tests.learner.slow_run import SlowModel
from tests.learner.test_going_on import killed_by
from tests.learner.worlds import events_of

ROOT = Path(__file__).parents[2]


class Hangs:
    """A watcher that does not come back from one of its calls; from that of an event, not from the last step's."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.go = threading.Event()
        self.calls: list[str] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.where:
            self.go.wait(60)

    def opened(self, run: Mapping[str, Any]) -> None:
        self._called("opened")

    def event(self, event: AnyEvent) -> None:
        self._called("last" if isinstance(event, Stepped) and event.step == 2 else "event")

    def closed(self) -> None:
        self._called("closed")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("opened", "Hangs.opened did not return within 0.4 s, and was given up: mend it, or leave it out"),
        ("last", "watchers: waits for Hangs to take Stepped, for "),
        ("event", "watchers: waits for Hangs to take Admitted, for "),
        ("closed", "Hangs.closed did not return within 0.4 s"),
    ],
)
async def test_a_watcher_that_hangs_is_named_and_given_up(tmp_path: Path, where: str, said: str) -> None:
    hangs, other, store = Hangs(where), Hangs(""), MemorySegments()
    run = run_of(tmp_path, WELL, stall_deadline=0.4)
    try:
        with anyio.fail_after(20), pytest.raises(Stalled) as caught:
            await train_async(run, watchers=[other, hangs], store=store)
    finally:
        hangs.go.set()
    assert said in str(caught.value)
    assert other.calls[-1] == "closed", "one that hangs keeps no other from its end"
    if where != "opened":
        assert await train_async(run, store=store), "and the run goes on without it"
        assert len([event for event in events_of(store) if isinstance(event, Stepped)]) == 3


HUNG = """
import sys, time
from pathlib import Path
from tests.learner.moods import WELL, run_of
from sparring.learner import train
from tests.learner.test_hanging import Hangs
train(run_of(Path(sys.argv[1]), WELL, stall_deadline=0.4), watchers=[Hangs("closed")])
"""


def test_a_process_does_not_wait_for_a_watcher_that_was_given_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HUNG, str(tmp_path)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and "Hangs.closed did not return" in done.stderr


class Spoils(Hangs):
    """One that cannot be closed."""

    def closed(self) -> None:
        raise JournalError("no space left for the watcher")


async def test_what_ended_the_run_is_raised_and_not_what_failed_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(tmp_path, always("raises"), max_faults=0.1)
    with pytest.raises(TooManyFaults):
        await train_async(run, watchers=[Spoils(""), Spoils("")], store=MemorySegments())
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert (
        said
        == ["Spoils.closed failed too, after what ended the run: JournalError('no space left for the watcher')"] * 2
    )
    with pytest.raises(JournalError, match="for the watcher"):
        await train_async(run_of(tmp_path / "well", WELL), watchers=[Spoils("")], store=MemorySegments())


async def test_a_call_raises_what_it_raised_and_ends_with_its_waiter() -> None:
    def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await called(fails, "it", patience=9.0)
    go, told = threading.Event(), list[str]()
    with anyio.fail_after(20), anyio.move_on_after(0.05):
        await called(go.wait, "it", patience=0.1, limited=False, when_cancelled=lambda: told.append("over"))
    go.set()
    assert told == ["over"]


# ------------------------------------------------------------------------------------------------------------------ models


@dataclass(frozen=True)
class Backends:
    """Backends whose models take `seconds` to be made, and for each step after so many; with `counts` they say that they
    compute."""

    create: float = 0.0
    step: float = 0.0
    counts: bool = False

    def open(self, *, deterministic: bool) -> ScriptedBackend:
        return Slow(self)


class Slow(ScriptedBackend):
    def __init__(self, how: Backends) -> None:
        super().__init__()
        self._how = how
        self._asked = 0

    async def create_model(self, model: str, *, lora: Lora | None = None, seed: int = 0) -> ScriptedModel:
        await anyio.sleep(self._how.create)
        return SlowModel(model, seed, self._how.step)

    def statistics(self) -> Mapping[str, float]:
        self._asked += 1
        return {"engine/parts": float(self._asked)} if self._how.counts else {}


async def test_a_model_that_is_never_made_is_named(tmp_path: Path) -> None:
    run = run_of(tmp_path, WELL, stall_deadline=0.2, backend=Backends(create=1000.0))
    said = "model 'model' of 'policy' was not there after 0.2 s, .* raise stall_deadline"
    with anyio.fail_after(10), pytest.raises(Stalled, match=said):
        await train_async(run, store=MemorySegments())


async def test_a_model_that_takes_long_and_computes_is_waited_for(tmp_path: Path) -> None:
    backend = Backends(create=0.5, step=0.5, counts=True)
    await trained(run_of(tmp_path, WELL, stall_deadline=0.15, steps=1, backend=backend))


@dataclass(frozen=True)
class Paced:
    """Models whose steps take as long as is said elsewhere, so that the settings are the same."""

    seconds: ClassVar[float] = 0.0

    def open(self, *, deterministic: bool) -> ScriptedBackend:
        return Slow(Backends(step=Paced.seconds))


async def test_a_step_that_hangs_when_it_is_done_again_is_named(tmp_path: Path) -> None:
    Paced.seconds = 0.0
    run = run_of(tmp_path, WELL, steps=6, evaluate_every=6, backend=Paced())
    kept = await killed_by(run, lambda event: isinstance(event, Stepped) and event.step == 3)
    Paced.seconds = 1000.0
    said = "step 0 of 'policy' is done again from the journal, and its model did nothing for 0.2 s"
    with anyio.fail_after(10), pytest.raises(Stalled, match=said):
        await train_async(replace(run, stall_deadline=0.2), store=kept)
    Paced.seconds = 0.4
    with anyio.fail_after(30):
        assert await train_async(replace(run, stall_deadline=0.7), store=kept), "each step has the deadline for itself"


# ------------------------------------------------------------------------------------------------------- a learner that raises


class Raises(ScriptedModel):
    """Breaks in its third step, once."""

    broke = False

    def __init__(self, model: str, seed: int) -> None:
        super().__init__(model, seed, babble)
        self._made = 0

    def forward_backward(self, data: Sequence[Datum], loss: Loss) -> Pending[ForwardOutput]:  # type: ignore[override]
        self._made += 1
        if self._made == 3 and not Raises.broke:
            Raises.broke = True
            raise MemoryError("out of memory in forward_backward")
        return super().forward_backward(data, loss)


class Breaking(ScriptedBackend):
    async def create_model(self, model: str, *, lora: Lora | None = None, seed: int = 0) -> ScriptedModel:
        return Raises(model, seed)


@dataclass(frozen=True)
class BreakingModels:
    def open(self, *, deterministic: bool) -> ScriptedBackend:
        return Breaking()


async def test_a_learner_that_raises_ends_the_run_which_goes_on_from_there(tmp_path: Path) -> None:
    Raises.broke = True
    run, undisturbed = run_of(tmp_path, WELL, deterministic=True, backend=BreakingModels()), MemorySegments()
    await trained(replace(run, folder=tmp_path / "undisturbed"), undisturbed)
    Raises.broke, kept = False, MemorySegments()
    with anyio.fail_after(20), pytest.raises(MemoryError, match="out of memory in forward_backward"):
        await train_async(run, store=kept)
    assert len([event for event in events_of(kept) if isinstance(event, Stepped)]) == 2
    await trained(run, kept)
    digests = [[e.digest for e in events_of(store) if isinstance(e, Stepped)] for store in (kept, undisturbed)]
    assert digests[0] == digests[1]
