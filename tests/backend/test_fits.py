"""Fits of a tiny model: it learns what it is given, DPO's gradient is its formula's, a run begins with what was learned."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from torch import Tensor

from sparring import (
    DPO,
    Adam,
    Custom,
    Datum,
    Episodes,
    Fit,
    Lines,
    Local,
    Lora,
    Pairs,
    Policy,
    Run,
    Sampling,
    Seat,
    distillation,
    environment,
)
from sparring.backend import CrossEntropy, SamplingClient
from sparring.backend.local import LocalBackend
from sparring.errors import NonFinite, SettingError
from sparring.learner import fit_async, train_async
from sparring.learner.checked import schedule_of
from sparring.learner.examples import Example
from sparring.learner.fitting import Fitted
from sparring.rollout import Coordinator, MemorySegments
from sparring.rollout.events import Evaluated, Planned, Stepped
from tests.learner.worlds import events_of

SMALL = Lora(rank=8, alpha=16, unembedding=True)


def written(folder: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fit_of(model: Path, folder: Path, **settings: Any) -> Fit:
    return Fit(
        **{
            "name": "fit",
            "model": str(model),
            "batch_size": 8,
            "learning_rate": 1e-2,
            "lora": SMALL,
            "backend": Local(dtype="float32"),
            "deterministic": True,
            "folder": folder,
            **settings,
        }
    )


async def made(fit: Fit) -> Fitted:
    with anyio.fail_after(120):
        return await fit_async(fit)


def lines_of(fit: Fit) -> list[dict[str, float]]:
    return [json.loads(line) for line in (fit.path / "metrics.jsonl").read_text().splitlines()]


def sums(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"What is {a} + {a}?", "completion": "yes"} for a in range(count)]


@environment
async def agree(task: int, only: Seat) -> float:
    return float((await only.ask(f"What is {task} + {task}?")).text == "yes")


def run_after(model: Path, folder: Path, start: Path | None, **settings: Any) -> Run:
    policy = {"lora": SMALL, "sampling": Sampling(max_tokens=4), **settings}
    return Run(
        name="after",
        train=Episodes(agree, range(50)),
        held_out=Episodes(agree, range(60, 70), greedy=True),
        policies=Policy(str(model), start=None if start is None else str(start), **policy),
        steps=1,
        groups_per_step=1,
        group_size=2,
        backend=Local(dtype="float32"),
        deterministic=True,
        folder=folder,
    )


async def first_reward(run: Run) -> float:
    store = MemorySegments()
    with anyio.fail_after(120):
        assert await train_async(run, store=store)
    found = next(event for event in events_of(store) if isinstance(event, Evaluated) and event.version == 0)
    return float(np.mean([value for value in found.values if value is not None]))


async def test_a_warm_start_is_where_a_run_begins(tiny_llama: Path, tmp_path: Path) -> None:
    fit = fit_of(tiny_llama, tmp_path, train=Lines(written(tmp_path, sums(40))), epochs=20)
    done = await made(fit)
    losses = [line["held_out/loss"] for line in lines_of(fit) if "held_out/loss" in line]
    assert losses[0] > 3
    assert losses[-1] < 0.2
    assert await first_reward(run_after(tiny_llama, tmp_path, None)) == 0.0
    assert await first_reward(run_after(tiny_llama, tmp_path / "warm", done.final)) == 1.0
    with pytest.raises(SettingError, match=r"holds Lora\(rank=8.*the settings say lora=Lora\(rank=4"):
        await first_reward(run_after(tiny_llama, tmp_path / "other", done.final, lora=Lora(rank=4)))


async def test_an_end_in_the_middle_changes_no_weight(tiny_llama: Path, tmp_path: Path) -> None:
    train = Lines(written(tmp_path, sums(20)))
    whole = fit_of(tiny_llama, tmp_path, train=train, epochs=2, evaluate_every=2)
    cut = replace(whole, name="cut")

    def stop(line: Mapping[str, float]) -> None:
        if line["step"] == 3:
            raise KeyError("the process ends here")

    with pytest.raises(KeyError), anyio.fail_after(120):
        await fit_async(cut, tell=stop)
    await made(cut)
    await made(whole)
    assert lines_of(cut) == lines_of(whole)
    manifests = [json.loads((fit.path / "final" / "manifest.json").read_text()) for fit in (cut, whole)]
    assert manifests[0] == manifests[1]


PREFERRED = [{"prompt": f"What is {a} + 1?", "chosen": "yes", "rejected": "no"} for a in range(24)]


async def test_what_is_preferred_becomes_likelier(tiny_llama: Path, tmp_path: Path) -> None:
    fit = fit_of(tiny_llama, tmp_path, train=Pairs(written(tmp_path, PREFERRED)), objective=DPO(beta=0.5), epochs=4)
    await made(fit)
    lines = lines_of(fit)
    assert lines[0]["held_out/loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert lines[-1]["held_out/loss"] < 0.2
    assert lines[-1]["held_out/accuracy"] == 1.0


async def test_the_gradient_is_that_of_the_formula(tiny_llama: Path, tmp_path: Path) -> None:
    """Two steps of a fit, against torch's own derivative of eq. 7 over the same pairs, by the weights that come out."""
    objective = DPO(beta=0.4, smoothing=0.1)
    pairs = Pairs(written(tmp_path, PREFERRED[:6]))
    fit = fit_of(tiny_llama, tmp_path, train=pairs, objective=objective, held_out=0.0, epochs=2, lr_schedule="constant")
    await made(fit)

    def loss(data: Sequence[Datum], logprobs: Sequence[Tensor]) -> tuple[Tensor, Mapping[str, float]]:
        scores = torch.stack([lp.sum() - float(ref) for lp, ref in zip(logprobs, reference, strict=True)])
        margins = objective.beta * (scores[0::2] - scores[1::2])
        good, bad = (torch.nn.functional.logsigmoid(sign * margins) for sign in (1, -1))
        return -((1 - objective.smoothing) * good + objective.smoothing * bad).mean(), {}

    with anyio.fail_after(120):
        async with LocalBackend(dtype="float32", deterministic=True, cache_dir=tmp_path / "cache") as backend:
            model = await backend.create_model(str(tiny_llama), lora=SMALL, seed=fit.seed)
            data = [one.datum for item in await pairs.items(model.renderer) for one in item]
            reference = [float(row.sum()) for row in (await model.forward(data, CrossEntropy())).logprobs]
            for _ in range(2):
                await model.forward_backward(data, Custom(function=loss))
                await model.optim_step(Adam(learning_rate=1e-2))
            wanted = [float(row.sum()) for row in (await model.forward(data, CrossEntropy())).logprobs]
            fitted = await backend.create_from_state(str(fit.path / "final"), optimizer=False)
            found = [float(row.sum()) for row in (await fitted.forward(data, CrossEntropy())).logprobs]
    assert found == pytest.approx(wanted, abs=2e-3)
    assert max(abs(one - other) for one, other in zip(found, reference, strict=True)) > 1


@dataclass(frozen=True, slots=True)
class Warm:
    """The teacher: what a fit made of the model, on a backend of its own."""

    model: str

    def opened(self) -> AbstractAsyncContextManager[SamplingClient]:
        return _opened(self.model)


@asynccontextmanager
async def _opened(folder: str) -> AsyncIterator[SamplingClient]:
    async with LocalBackend(dtype="float32", deterministic=True) as backend:
        model = await backend.create_from_state(folder, optimizer=False)
        yield await model.sampler()


async def test_a_teacher_behind_a_sampler_says_what_the_trainer_would(tiny_llama: Path, tmp_path: Path) -> None:
    """A run whose teacher is what a fit made of the model: what it says of the first step is what the fitted model's trainer
    says, and the run comes nearer to it."""
    train = Lines(written(tmp_path, sums(40)))
    done = await made(fit_of(tiny_llama, tmp_path, train=train, epochs=4))
    policy = Policy(
        str(tiny_llama),
        distillation(Warm(str(done.final))),
        lora=SMALL,
        learning_rate=1e-2,
        sampling=Sampling(max_tokens=4),
    )
    settings: dict[str, Any] = {"steps": 30, "groups_per_step": 16, "group_size": 1, "evaluate_every": 30}
    run = replace(run_after(tiny_llama, tmp_path, None), policies=policy, **settings)
    store = MemorySegments()
    with anyio.fail_after(300):
        assert await train_async(run, store=store)
    steps = [event for event in events_of(store) if isinstance(event, Stepped)]
    gaps = [float(np.mean(np.frombuffer(step.measured["reference"], "<f4"))) for step in steps]
    assert np.mean(gaps[-5:]) > np.mean(gaps[:5]) + 0.1, "likelier under the teacher"
    state = Coordinator(schedule_of(run))
    for event in events_of(store):
        state.apply(event)
        if isinstance(event, Planned):
            break
    contexts = [one.contexts[0] for unit in state.batches["policy"].units for one in unit.trajectories]
    data = [Example(tokens=one.tokens, mask=one.action_mask, where="").datum for one in contexts]
    async with LocalBackend(dtype="float32", deterministic=True) as backend:
        fitted = await backend.create_from_state(str(done.final), optimizer=False)
        rows = (await fitted.forward(data, CrossEntropy())).logprobs
    wanted = np.concatenate([row[datum.mask] for row, datum in zip(rows, data, strict=True)])
    assert np.frombuffer(steps[0].measured["reference"], "<f4") == pytest.approx(wanted, abs=1e-3)


async def test_a_fit_that_flies_apart_says_where(tiny_llama: Path, tmp_path: Path) -> None:
    train = Lines(written(tmp_path, sums(4)))
    fit = fit_of(tiny_llama, tmp_path, train=train, learning_rate=1e30, lr_schedule="constant", epochs=9, held_out=0.0)
    with pytest.raises(NonFinite, match=r"step \d+ on .*rows\.jsonl, line \d.*lower the learning rate"):
        await made(fit)
