"""Evaluation in training: beside the loop, each with the weights of its version, on whatever sets are held out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread

from sparring import Episodes, Policy, Run, ScriptedModels, Seat, effect, environment
from sparring.cli.eval import table
from sparring.learner import train_async
from sparring.learner.history import history, read_events
from sparring.rollout.events import AnyEvent, Evaluated, Stepped

STEPS, GROUPS, SIZE = 6, 2, 2


def run_of(folder: Path, *, after: int) -> Run:
    """Trains on one environment and is evaluated on two others, whose episodes go on only when a training episode has begun
    that version `after` plays: with k = 0 those of a step begin when the one before is made."""
    begun: list[int] = []
    made = anyio.Event()

    @environment
    async def trained_on(task: int, solver: Seat) -> float:
        begun.append(task)
        if len(begun) > after * GROUPS * SIZE:
            made.set()
        return float((await solver.ask(f"Spell {task}.")).text < "d")

    async def enough() -> None:
        await made.wait()

    @environment
    async def sums(task: int, solver: Seat) -> float:
        await effect(enough)
        return float(len((await solver.ask(f"{task} + 1?")).text))

    @environment
    async def words(task: str, solver: Seat, *, times: int = 1) -> float:
        await effect(enough)
        replies = [(await solver.ask(f"Say {task}.")).text for _ in range(times)]
        return float(sum(map(len, replies)))

    return Run(
        name="beside",
        train=Episodes(trained_on, range(100, 150)),
        held_out={
            "sums": Episodes(sums, range(8)),
            "words": Episodes(words, [f"w{n}" for n in range(5)], greedy=True),
            "words twice": Episodes(words(times=2), [f"w{n}" for n in range(5)]),
        },
        policies=Policy("none"),
        steps=STEPS,
        groups_per_step=GROUPS,
        group_size=SIZE,
        max_staleness=0,
        evaluate_every=2,
        backend=ScriptedModels(),
        folder=folder,
    )


async def lived(run: Run) -> list[AnyEvent]:
    with anyio.fail_after(20):
        assert await train_async(run)
    return await anyio.to_thread.run_sync(lambda: list(read_events(run.path)))


def evaluations(events: list[AnyEvent]) -> dict[tuple[str, int], list[float | None]]:
    return {(event.name, event.version): event.values for event in events if isinstance(event, Evaluated)}


async def test_training_goes_on_while_held_out_episodes_play(tmp_path: Path) -> None:
    """Those of version 0 end only after the fourth step began: a loop that waited for them would never come there."""
    held_up = await lived(run_of(tmp_path / "held up", after=4))
    order = [event for event in held_up if isinstance(event, Stepped | Evaluated)]
    first = next(number for number, event in enumerate(order) if isinstance(event, Evaluated))
    assert [event.step for event in order[:first] if isinstance(event, Stepped)][:4] == [0, 1, 2, 3]
    at_once = evaluations(await lived(run_of(tmp_path / "at once", after=0)))
    assert evaluations(held_up) == at_once, "each with the weights of its version, however many were made since"
    sums = [at_once["sums", version] for version in (0, 2, 4, 6)]
    assert len({tuple(values) for values in sums}) == 4, "which say different things"


async def test_every_set_has_its_own_lines(tmp_path: Path) -> None:
    run = run_of(tmp_path, after=0)
    found = evaluations(await lived(run))
    wanted = {(name, version) for name in run.named_held_out for version in (0, 2, 4, 6)}
    assert found.keys() == wanted and {name: len(found[name, 0]) for name in run.named_held_out} == {
        "sums": 8,
        "words": 5,
        "words twice": 5,
    }
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    told = {(line["name"], line["version"]): line["deterministic"] for line in lines if line["kind"] == "evaluation"}
    assert told.keys() == wanted
    mean = sum(value or 0 for value in found["words", 4]) / 5
    assert told["words", 4]["reward"] == mean
    rows = list(table(history(await anyio.to_thread.run_sync(lambda: list(read_events(run.path))))))
    assert [row.split("  ")[0].strip() for row in rows[1:]] == [name for name in run.named_held_out for _ in range(4)]
    page = (run.path / "report.html").read_text()
    assert all(name in page for name in run.named_held_out)


async def test_a_set_is_measured_alike_whatever_else_is_held_out(tmp_path: Path) -> None:
    found = evaluations(await lived(run_of(tmp_path / "all", after=0)))
    other = run_of(tmp_path / "other", after=0)
    assert isinstance(other.held_out, dict)
    alone = replace(other, held_out={"words": other.held_out["words"]})
    assert evaluations(await lived(alone)) == {key: found[key] for key in found if key[0] == "words"}
