"""Making a fit: a loop over batches of items on the training primitives, from wherever its folder stands to its end.

Everything that decides a step is a function of settings, items and the step's number, so that what goes on from a checkpoint
ends as what was never interrupted. The folder has fit.json (settings and a digest of the items), metrics.jsonl (a line for each
step), checkpoints/fit/<step>/ and, when it is done, final/.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import numpy as np

from sparring.arrays import F64
from sparring.backend import CrossEntropy, Datum, ForwardOutput, TrainingClient, token_mean
from sparring.errors import JournalError, NonFinite, RunChanged, SettingError
from sparring.learner.described import differences, plain
from sparring.learner.examples import Item, Source
from sparring.learner.fit import Fit
from sparring.learner.folder import RunFolder, write_whole
from sparring.learner.preference import DPO
from sparring.learner.taught import begun

Line = Mapping[str, float]
Tell = Callable[[Line], None]
_POLICY = "fit"
_LOSS = CrossEntropy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What came of it: the folder of the weights, the steps, and the last values of what was measured."""

    final: Path
    steps: int
    measured: Line


def fit(fit: Fit, *, tell: Tell | None = None) -> Fitted:
    """Make the fit, or go on with it. Blocks. `tell` is told each line of metrics.jsonl.

    Raises `SettingError` for items that cannot be trained on, `RunChanged` where the folder is that of another fit,
    `NonFinite` where the loss is none.
    """

    async def main() -> Fitted:
        return await fit_async(fit, tell=tell)

    return anyio.run(main)


async def fit_async(fit: Fit, *, tell: Tell | None = None) -> Fitted:
    """The same, on a running event loop."""
    async with RunFolder.held(fit.path) as folder, fit.backend.open(deterministic=fit.deterministic) as backend:
        model = await begun(backend, fit.model, fit.start, lora=fit.lora, seed=fit.seed)
        data = await _read(fit, model)
        await _begin(fit, folder, model, data)
        making = _Making(fit, folder, model, data, tell or _nobody)
        return await making.to_the_end()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    train: Sequence[Item]
    held_out: Sequence[Item]


async def _read(fit: Fit, model: TrainingClient) -> _Data:
    """All items. Raises `SettingError` for one that is too long for the model, for an item on both sides, for none to train."""
    train = await _items(fit.train_sources, model)
    held_out = await _items(fit.held_out_sources, model)
    if fit.held_out_share:
        distinct = sorted({_digest(item) for item in train})
        apart = set(distinct[: max(1, round(fit.held_out_share * len(distinct)))])
        held_out = [item for item in train if _digest(item) in apart]
        train = [item for item in train if _digest(item) not in apart]
    known = {_digest(item): item for item in train}
    for item in held_out:
        if _digest(item) in known:
            raise SettingError(
                f"{item[0].where} is held out and trained on too, at {known[_digest(item)][0].where}: keep them apart"
            )
    if not train:
        raise SettingError(
            f"{len(held_out)} items are held out and none is left to train on: give more, or hold out less"
        )
    return _Data(train=train, held_out=held_out)


async def _items(sources: Sequence[Source], model: TrainingClient) -> list[Item]:
    found: list[Item] = []
    for source in sources:
        found += await source.items(model.renderer)
    for item in found:
        for one in item:
            if len(one.tokens) > model.info.context_length:
                raise SettingError(
                    f"{one.where} has {len(one.tokens)} tokens, the context of {model.info.model!r} "
                    f"{model.info.context_length}: shorten it, or leave it out"
                )
    return found


def _digest(item: Item) -> str:
    return "/".join(one.digest for one in item)


async def _begin(fit: Fit, folder: RunFolder, model: TrainingClient, data: _Data) -> None:
    """fit.json, or the comparison with the one that is there."""
    digest = sha256("\n".join([*map(_digest, data.train), "", *map(_digest, data.held_out)]).encode()).hexdigest()
    settings = {
        item.name: plain(getattr(fit, item.name)) for item in fields(fit) if item.name not in ("folder", "backend")
    }
    described = {
        "settings": settings,
        "items": {"train": len(data.train), "held_out": len(data.held_out), "sha256": digest},
        "model": {"fingerprint": model.info.fingerprint, "begins_as": await model.digest()},
        "renderer": model.renderer.fingerprint,
    }
    await anyio.to_thread.run_sync(_check_same, folder.path / "fit.json", described)


def _check_same(path: Path, described: Mapping[str, Any]) -> None:
    text = msgspec.json.format(msgspec.json.encode(described), indent=2).decode() + "\n"
    if path.exists():
        found = list(differences(msgspec.json.decode(path.read_bytes()), msgspec.json.decode(text)))
        if found:
            raise RunChanged(
                f"{path.parent} was started with {'; '.join(found)}: use the same, or another name for a new fit"
            )
    elif (path.parent / "run.json").exists():
        raise RunChanged(f"{path.parent} is the folder of a run: use another name for the fit")
    else:
        write_whole(path, text)


class _Making:
    """The loop."""

    def __init__(self, fit: Fit, folder: RunFolder, model: TrainingClient, data: _Data, tell: Tell) -> None:
        self._fit, self._folder, self._model, self._data, self._tell = fit, folder, model, data, tell
        self._steps = fit.steps(len(data.train))
        self._metrics = folder.path / "metrics.jsonl"
        self._references: dict[str, F64] = {}
        self._lines: list[Line] = []

    async def to_the_end(self) -> Fitted:
        """Waits for the model and for the disk."""
        await self._refer()
        at = await self._go_on()
        if not self._lines:
            await self._note({"step": 0.0} | await self._held_out())
        for step in range(at, self._steps):
            line = await self._step(step)
            made = step + 1
            if made % self._fit.evaluate_every == 0 or made == self._steps:
                line |= await self._held_out()
                path = await anyio.to_thread.run_sync(self._folder.fresh_checkpoint, _POLICY, made)
                await self._model.save_state(str(path))
            await self._note(line)
            if made % self._fit.evaluate_every == 0:
                await anyio.to_thread.run_sync(self._folder.prune, _POLICY, {made})
        final = self._folder.path / "final"
        await self._model.save_state(str(final))
        return Fitted(final=final, steps=self._steps, measured=self._lines[-1])

    async def _go_on(self) -> int:
        """Load the newest checkpoint and take the lines up to it; returns the steps that are made."""
        await anyio.to_thread.run_sync(self._folder.sweep)
        there = await anyio.to_thread.run_sync(self._folder.checkpoints, _POLICY)
        lines = await anyio.to_thread.run_sync(_read_lines, self._metrics)
        told = {int(line["step"]) for line in lines}
        at = max(step for step in there if step == 0 or step in told)
        self._lines = [line for line in lines if line["step"] <= at]
        text = "".join(map(_text, self._lines))
        await anyio.to_thread.run_sync(write_whole, self._metrics, text)
        if at:
            await self._model.load_state(str(self._folder.checkpoint(_POLICY, at)))
        return at

    async def _note(self, line: Line) -> None:
        """Onto the disk before a checkpoint counts and before anybody is told."""
        self._lines.append(line)
        await anyio.to_thread.run_sync(_append, self._metrics, line)
        self._tell(line)

    async def _step(self, step: int) -> dict[str, float]:
        """One batch and one optimizer step."""
        rate = self._fit.rate_at(step, self._steps)
        adam = replace(self._fit.adam, learning_rate=rate)
        batch = self._batch(step)
        figures: dict[str, float] = {}
        try:
            if isinstance(self._fit.objective, DPO):
                data, figures = await self._preferred(batch, self._fit.objective)
                submitted = self._model.forward_backward(data, _LOSS)
                stepped = self._model.optim_step(adam)
                await submitted
            else:
                submitted = self._model.forward_backward(token_mean([one.datum for (one,) in batch]), _LOSS)
                stepped = self._model.optim_step(adam)
                figures["loss"] = (await submitted).metrics["loss"]
            norm = (await stepped).metrics["gradient_norm"]
        except NonFinite as error:
            where = ", ".join(item[0].where for item in batch)
            raise NonFinite(f"step {step} on {where}: {error}; lower the learning rate or look at these") from error
        tokens = sum(int(one.mask.sum()) for item in batch for one in item)
        return {"step": step + 1.0, **figures, "tokens": float(tokens), "gradient_norm": norm, "learning_rate": rate}

    def _batch(self, step: int) -> Sequence[Item]:
        """The items of a step: each epoch has an order of its own."""
        size, train = self._fit.batch_size, self._data.train
        epoch, place = divmod(step, self._steps // self._fit.epochs)
        order = list(range(len(train)))
        Random(f"{self._fit.seed}/fit/{epoch}").shuffle(order)
        return [train[index] for index in order[place * size : (place + 1) * size]]

    async def _refer(self) -> None:
        """What the model says of all pairs before it learns: the reference of DPO."""
        if isinstance(self._fit.objective, DPO):
            for batch in self._batches([*self._data.train, *self._data.held_out]):
                for item, row in zip(batch, await self._scored(batch), strict=True):
                    self._references[_digest(item)] = row

    async def _scored(self, batch: Sequence[Item]) -> F64:
        """The log-prob of the learned tokens of each example, f64[items, width]."""
        data = [one.datum for item in batch for one in item]
        output: ForwardOutput = await self._model.forward(data, _LOSS)
        sums = [float(row[datum.mask].sum(dtype=np.float64)) for row, datum in zip(output.logprobs, data, strict=True)]
        return np.array(sums).reshape(len(batch), -1)

    async def _preferred(self, batch: Sequence[Item], objective: DPO) -> tuple[list[Datum], dict[str, float]]:
        """The data of a DPO step, whose cross-entropy has the gradient of its loss, and its figures."""
        margins = await self._margins(batch, objective)
        weights = -objective.slopes(margins) / len(batch)
        data = [
            item[side].datum.scaled(sign * float(weight))
            for item, weight in zip(batch, weights, strict=True)
            for side, sign in ((0, 1.0), (1, -1.0))
        ]
        return data, _preference_figures(margins, objective)

    async def _margins(self, batch: Sequence[Item], objective: DPO) -> F64:
        reference = np.stack([self._references[_digest(item)] for item in batch])
        return objective.margins(await self._scored(batch), reference)

    async def _held_out(self) -> dict[str, float]:
        """What is measured on what is held out; nothing where nothing is."""
        found: list[F64] = []
        tokens = 0
        for batch in self._batches(self._data.held_out):
            if isinstance(self._fit.objective, DPO):
                found.append(await self._margins(batch, self._fit.objective))
            else:
                found.append(-(await self._scored(batch))[:, 0])
                tokens += sum(int(one.mask.sum()) for (one,) in batch)
        if not found:
            return {}
        every = np.concatenate(found)
        objective = self._fit.objective
        figures = (
            _preference_figures(every, objective)
            if isinstance(objective, DPO)
            else {"loss": float(every.sum()) / tokens}
        )
        return {f"held_out/{name}": value for name, value in figures.items()}

    def _batches(self, items: Sequence[Item]) -> list[Sequence[Item]]:
        size = self._fit.batch_size
        return [items[start : start + size] for start in range(0, len(items), size)]


def _preference_figures(margins: F64, objective: DPO) -> dict[str, float]:
    """The loss, how often the chosen reply gained more, and by how much, in nats."""
    return {
        "loss": float(objective.losses(margins).mean()),
        "accuracy": float((margins > 0).mean()),
        "margin": float(margins.mean()),
    }


def _read_lines(path: Path) -> list[Line]:
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")  # what a crash cut off is no line
    return [msgspec.json.decode(line, type=dict[str, float]) for line in whole.splitlines()]


def _text(line: Line) -> str:
    return msgspec.json.encode(line).decode() + "\n"


def _append(path: Path, line: Line) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(_text(line))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise JournalError(
            f"{str(path)!r} cannot be written: {error.strerror}; free some disk space and go on"
        ) from error


def _nobody(line: Line) -> None:
    """Nobody is told."""
