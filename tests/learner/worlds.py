"""Small runs over the scripted backend, shared by the tests of the learner."""

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import anyio

from sparring import Episodes, Frozen, Lineup, Policy, Run, ScriptedModels, Seat, environment, gather, grpo, rae
from sparring.learner import train_async
from sparring.rollout import MemorySegments
from sparring.rollout.events import AnyEvent, Stepped, canonical, decode_segment, encode
from sparring.rollout.journal import Snapshot


@environment
async def duel(task: int, first: Seat, second: Seat, *, rng: Random, rounds: int = 1) -> dict[Seat, float]:
    """Both speak at once, then the first again, then a fork of the second: every kind of conversation in little space."""
    luck = rng.random()
    one, two = await gather(first.ask(f"task {task}"), second.ask(f"task {task}, {luck:.3f}"))
    for _ in range(rounds):
        one = await first.ask(f"it said {two}")
    side = second.fork("side")
    aside = await side.ask(f"about {one}")
    first.reward(0.25 * len(one.text))
    return {first: luck, second: float(len(two.text)), side: float(aside.text < "d")}


def duel_run(
    folder: Path, *, k: int = 0, deterministic: bool = True, steps: int = 3, name: str = "duel", seed: int = 0
) -> Run:
    """Two policies, two seats, three steps of two groups of two episodes; evaluated at versions 0, 2 and 3."""
    who = Lineup({"first": "alice", "second": "bob"})
    return Run(
        name=name,
        train=Episodes(duel, range(20), who),
        held_out=Episodes(duel, range(20, 23), who | {"second": Frozen("bob@0")}),
        policies={"alice": Policy("one", grpo(deviation=True)), "bob": Policy("two", rae())},
        steps=steps,
        groups_per_step=2,
        group_size=2,
        max_staleness=k,
        evaluate_every=2,
        backend=ScriptedModels(),
        deterministic=deterministic,
        seed=seed,
        folder=folder,
    )


def events_of(store: MemorySegments) -> list[AnyEvent]:
    return [event for blob in store.blobs for event in decode_segment(blob)]


def canonical_bytes(store: MemorySegments) -> list[bytes]:
    return [encode(event) for event in canonical(events_of(store))]


def digests_of(store: MemorySegments) -> dict[tuple[str, int], str]:
    return {(event.policy, event.step): event.digest for event in events_of(store) if isinstance(event, Stepped)}


class Recorded(MemorySegments):
    """Segments with `all` the snapshots that were ever taken, also those that no longer stay."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[int, bytes]] = []

    def append(self, blob: bytes, snapshot: Snapshot | None = None) -> None:
        super().append(blob, snapshot)
        if snapshot is not None:
            self.all.append((len(self.blobs), snapshot.blob))


class Crash(BaseException):
    """The process dies here."""


class CrashingSegments:
    """Segments that survive a crash, which happens before or after the n-th commit."""

    def __init__(self, kept: MemorySegments, commit: int, *, after: bool) -> None:
        self._kept = kept
        self._left = commit
        self._after = after

    def append(self, blob: bytes, snapshot: Snapshot | None = None) -> None:
        if self._left == 0 and not self._after:
            raise Crash
        self._kept.append(blob, snapshot)
        if self._left == 0:
            raise Crash
        self._left -= 1

    def read(self, after: int = 0) -> Iterator[bytes]:
        return self._kept.read(after)

    def snapshots(self) -> list[tuple[int, bytes]]:
        return self._kept.snapshots()

    def close(self) -> None:
        """Memory needs no closing."""


async def crash_at_every_commit(run_in: Callable[[Path], Run], folder: Path, *, after: bool, every: int = 1) -> int:
    """Run it undisturbed, then once for each commit (or each third, ...) that it makes, crashed there and resumed: every one
    ends with the same weights and the same history. Returns the number of the first commit that no run reaches."""
    undisturbed = MemorySegments()
    assert await train_async(run_in(folder / "undisturbed"), store=undisturbed)
    expected = canonical_bytes(undisturbed)
    crashed, commit = True, 0
    while crashed:
        kept, run = MemorySegments(), run_in(folder / f"{commit}")
        with anyio.fail_after(20):
            try:
                await train_async(run, store=CrashingSegments(kept, commit, after=after))
                crashed = False
            except Crash:
                assert await train_async(run, store=kept)
        assert digests_of(kept) == digests_of(undisturbed), f"crash at commit {commit}"
        assert canonical_bytes(kept) == expected, f"crash at commit {commit}"
        commit += every
    return commit
