"""Kills a run with SIGKILL at random instants, goes on with it, and checks that nothing was lost, doubled or changed.

    python examples/crash.py                    20 kills: nothing is done twice, every plan is trained as planned
    python examples/crash.py --deterministic    20 kills: besides, the weights and the journal of an undisturbed run

The run trains two policies, in duels against each other and alone. Each of its lives is a process in a group of its own; where
it ends before it was killed often enough, another run is begun. Exit code 0 where every check holds.
"""

import fcntl
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from threading import Event
from time import monotonic
from typing import Any

import anyio

from sparring import (
    Episodes,
    Frozen,
    Lineup,
    Local,
    Lora,
    Policy,
    Run,
    Sampling,
    Seat,
    effect,
    environment,
    gather,
    grpo,
    rae,
    train,
)
from sparring.backend.waiting import bound_spinning
from sparring.learner.continuity import Verdict, decided_again, equal, exactly_once, trained_again, unchanged
from sparring.learner.history import history, last_line, read_events, read_snapshots
from sparring.rollout.events import AnyEvent, Checkpointed

PATIENCE = 600.0
"""Seconds that a life may take."""


async def measured(text: str) -> int:
    """Something outside that takes its time."""
    await anyio.sleep(0.01)
    return len(text)


@environment
async def duel(task: int, first: Seat, second: Seat, *, rng: Random) -> dict[Seat, float]:
    """Both name a number, then one answers the other; who said less at the end wins."""
    luck = rng.randint(1, 9)
    one, two = await gather(first.ask(f"Name a number above {task}."), second.ask(f"Name a number below {luck}."))
    heard = await effect(measured, two.text)
    again = await effect(measured, (await first.ask(f"You said {one}, the other said {two}.")).text)
    return {first: float(again < heard), second: float(heard < again)}


@environment
async def solo(task: int, only: Seat) -> float:
    """As few letters as possible, twice."""
    first = await only.ask(f"Say {task}.")
    length = await effect(measured, first.text)
    return -0.1 * float(length + len((await only.ask("Shorter, please.")).text))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every life of a run is begun with: plain data, as each is another process."""

    folder: Path
    model: str
    steps: int
    deterministic: bool
    threads: int | None = None

    def run(self, part: str) -> Run:
        """The same run in another folder."""

        def policy(algorithm: Any) -> Policy:
            return Policy(self.model, algorithm, lora=Lora(rank=8), sampling=Sampling(max_tokens=8))

        return Run(
            name="crash",
            train=[
                Episodes(duel, range(40), Lineup({"first": "alice", "second": "bob"})),
                Episodes(solo, range(40), [Lineup({"only": "alice"}), Lineup({"only": "bob"})]),
            ],
            held_out=Episodes(duel, range(40, 42), Lineup({"first": "alice", "second": Frozen("bob@0")})),
            policies={"alice": policy(grpo()), "bob": policy(rae())},
            steps=self.steps,
            groups_per_step=2,
            group_size=2,
            evaluate_every=2,
            backend=Local(threads=self.threads),
            deterministic=self.deterministic,
            folder=self.folder / part,
        )


# ------------------------------------------------------------------------------------------------------------- processes


class Teller:
    """A watcher: says when the run is opened."""

    def __init__(self, sign: Connection) -> None:
        self._sign = sign

    def opened(self, run: Mapping[str, Any]) -> None:
        self._sign.send("opened")

    def event(self, event: AnyEvent) -> None:
        """The journal keeps it."""

    def closed(self) -> None:
        """The process ends."""


def live(settings: Settings, part: str, sign: Connection) -> None:
    """One life of a run, in a process group of its own."""
    os.setsid()
    sys.exit(0 if train(settings.run(part), watchers=[Teller(sign)]) else 1)


def redo(settings: Settings, part: str, sign: Connection) -> None:
    """Every step of a run that has ended, trained again."""
    os.setsid()
    sign.send(anyio.run(trained_again, settings.run(part)))


@dataclass(frozen=True, kw_only=True)
class Life:
    """How a process ended: whether it was killed, what of its group was left, seconds until it opened the run and in all."""

    killed: bool
    left: bool
    opened: float
    seconds: float


class Lives:
    """Starts processes, and kills them with all that they started."""

    def __init__(self, start: str) -> None:
        self._context: Any = multiprocessing.get_context(start)
        if start == "forkserver":
            self._context.set_forkserver_preload(["sparring.backend.local"])

    def one(self, settings: Settings, part: str, instant: float | None = None, *, starting: bool = False) -> Life:
        """A life that ends by itself, or is killed `instant` seconds after it opened the run; after its start if it is to be
        killed `starting`."""
        process, receiver = self._begun(live, settings, part)
        began = monotonic()
        try:
            opened = monotonic() - began if not starting and receiver.poll(PATIENCE) else 0.0
            process.join(PATIENCE if instant is None else instant)
            killed = process.exitcode is None
            if process.exitcode not in (0, None) or (killed and instant is None):
                raise RuntimeError(f"a life of {part} ended with exit code {process.exitcode}")
        finally:
            left = end(process)
        return Life(killed=killed, left=left, opened=opened, seconds=monotonic() - began)

    def trained_again(self, settings: Settings, part: str) -> Verdict:
        """The verdict of a process that trains all of it again."""
        process, receiver = self._begun(redo, settings, part)
        try:
            verdict: Verdict = receiver.recv()
        except EOFError:
            process.join(PATIENCE)
            wrong = (f"ended with exit code {process.exitcode}",)
            verdict = Verdict(name="trained again from the journal", figure="nothing", wrong=wrong)
        finally:
            end(process)
        return verdict

    def _begun(self, does: Callable[..., None], settings: Settings, part: str) -> tuple[BaseProcess, Connection]:
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=does, args=(settings, part, sender))
        process.start()
        sender.close()
        return process, receiver


def end(process: BaseProcess) -> bool:
    """Kill a process with its group. Returns whether something of the group was left where the process had ended by itself,
    or outlives the kill."""
    assert process.pid is not None
    left = process.exitcode is not None and alive(process.pid)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended, or has no group of its own yet
        process.kill()
    process.join(PATIENCE)
    pause = Event()
    for _ in range(50):
        if not alive(process.pid):
            return left
        pause.wait(0.1)
    return True


def alive(group: int) -> bool:
    """Whether a process of the group is there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------- checks


def journal(run: Run) -> list[AnyEvent]:
    """What is on the disk, read from a copy: who reads the journal itself tidies it up, which is for the next life to do."""
    with tempfile.TemporaryDirectory() as aside:
        for file in run.path.glob("journal.db*"):
            shutil.copy(file, aside)
        return list(read_events(Path(aside))) if (run.path / "journal.db").exists() else []


def lock_free(path: Path) -> bool:
    """Whether nobody holds the run's folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def strays(run: Run, events: Iterable[AnyEvent]) -> Verdict:
    """Whether a run that has ended left the files of a run behind, and nothing else."""
    known = {"run.json", "journal.db", "metrics.jsonl", "report.html"}
    saved = {("checkpoints", e.policy, str(e.step)) for e in events if isinstance(e, Checkpointed)}
    found = [path for path in run.path.rglob("*") if not (path.is_dir() and any(path.iterdir()))]
    files = [path.relative_to(run.path) for path in found]
    wrong = [
        f"{file} was left behind"
        for file in files
        if str(file) not in known and (file.parts[:3] not in saved or file.name.startswith("."))
    ]
    return Verdict(name="files of a run, and no others", figure=f"{len(files)}", wrong=tuple(wrong))


@dataclass(kw_only=True)
class Told:
    """What the kills of the run in one folder came to."""

    part: str
    run: Run
    lives: list[Life] = field(default_factory=list[Life])
    changed: list[str] = field(default_factory=list[str])
    locked: int = 0

    @property
    def kills(self) -> int:
        return sum(life.killed for life in self.lives)

    def verdicts(self) -> list[Verdict]:
        left = sum(life.left for life in self.lives)
        return [
            Verdict(name="the journal only grew", figure=f"{self.kills} kills", wrong=tuple(self.changed)),
            counted("processes left by a life", left, of=len(self.lives)),
            counted("locks left by a life", self.locked, of=len(self.lives)),
        ]


def counted(name: str, found: int, *, of: int) -> Verdict:
    """A check of something that must not be found."""
    return Verdict(name=name, figure=f"{found} of {of}", wrong=(f"{found} {name}",) if found else ())


def killed_until_ended(lives: Lives, settings: Settings, told: Told, whole: Life, rng: Random, kills: int) -> None:
    """Begin the run, kill it at most `kills` times, and go on with it until it has ended. A quarter of the kills come while a
    process still starts, the others up to a third of the whole run's time after it opened the run."""
    before = journal(told.run)
    while not told.lives or told.lives[-1].killed:
        starting = rng.random() < 0.25
        instant = rng.uniform(0, whole.opened if starting else (whole.seconds - whole.opened) / 3)
        if told.kills < kills:
            life = lives.one(settings, told.part, instant, starting=starting)
        else:
            life = lives.one(settings, told.part)
        told.lives.append(life)
        told.locked += told.run.path.exists() and not lock_free(told.run.path)
        now = journal(told.run)
        told.changed += unchanged(before, now).wrong
        before = now


def checked(lives: Lives, settings: Settings, told: Told, undisturbed: Sequence[AnyEvent]) -> list[Verdict]:
    """Every check of a run that has ended."""
    events = journal(told.run)
    decided = decided_again(events, snapshots=read_snapshots(told.run.path))
    verdicts = [*told.verdicts(), strays(told.run, events), *exactly_once(events, told.run), decided]
    verdicts.append(lives.trained_again(settings, told.part))
    return verdicts + (equal(events, undisturbed) if settings.deterministic else [])


def table(verdicts: Sequence[Verdict]) -> str:
    """One row for each check: name, figure, verdict."""
    rows = [f"  {one.name:<34}  {one.figure:<40}  {'holds' if one.holds else 'FAILS'}" for one in verdicts]
    return "\n".join([*rows, *(f"  {one.name}: {line}" for one in verdicts for line in one.wrong)])


# ------------------------------------------------------------------------------------------------------------------ main


def crash(arguments: Namespace, folder: Path) -> bool:
    """The undisturbed run, then killed ones until there were kills enough; returns whether every check holds."""
    settings = Settings(
        folder=folder,
        model=arguments.model,
        steps=arguments.steps,
        deterministic=arguments.deterministic,
        threads=arguments.threads,
    )
    lives, rng = Lives(arguments.start), Random(arguments.seed)
    whole = lives.one(settings, "undisturbed")
    undisturbed = journal(settings.run("undisturbed"))
    print(f"undisturbed: {whole.seconds:.1f} s, {last_line(history(undisturbed))}", flush=True)
    kills, holds = 0, True
    while kills < arguments.kills:
        part = f"killed-{kills}"
        told = Told(part=part, run=settings.run(part))
        killed_until_ended(lives, settings, told, whole, rng, arguments.kills - kills)
        kills += told.kills
        verdicts = checked(lives, settings, told, undisturbed)
        holds = holds and all(verdict.holds for verdict in verdicts)
        print(f"killed {told.kills} times: {last_line(history(journal(told.run)))}\n{table(verdicts)}", flush=True)
    print(f"{kills} kills: {'every check holds' if holds else 'SOME CHECKS FAIL'}")
    return holds


def parsed(words: Sequence[str]) -> Namespace:
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a model's folder or name")
    parser.add_argument("--kills", type=int, default=20, help="how often to kill (20)")
    parser.add_argument("--steps", type=int, default=12, help="steps of each policy (12)")
    parser.add_argument("--deterministic", action="store_true", help="tier C: the same weights and journal")
    parser.add_argument("--threads", type=int, help="of the engine; 1 where the model is tiny")
    parser.add_argument("--seed", type=int, default=0, help="of the instants of the kills")
    parser.add_argument("--folder", type=Path, help="where to keep the runs; without, they are deleted if all is well")
    parser.add_argument(
        "--start", choices=("spawn", "forkserver"), default="spawn", help="how a life starts: forkserver is faster"
    )
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    arguments = parsed(words)
    bound_spinning()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="sparring-crash-"))
    holds = crash(arguments, folder.absolute())
    if holds and arguments.folder is None:
        shutil.rmtree(folder)
    else:
        print(f"the runs are in {folder}")
    return 0 if holds else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a life under way is ended too
    sys.exit(main(sys.argv[1:]))
