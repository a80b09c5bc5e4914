"""An episode of many turns: each costs what is new in it, however long it has become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest

from sparring import Sampling, Seat, environment
from sparring.agents import PolicyAgent
from sparring.arrays import F32, I32
from sparring.backend.datum import Datum
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.local.prefixes import BLOCK
from sparring.backend.local.sampler import TorchSampler
from sparring.backend.losses import ImportanceSampling
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams
from sparring.rollout import Trajectory
from sparring.rollout.events import Acted
from sparring.rollout.trajectory import trajectories
from tests.backend.batches import LORA, sampler_of, spread
from tests.rollout.stage import conduct, plan_of

TURNS = 54


@environment
async def marathon(task: int, player: Seat, *, turns: int = TURNS, room: int = 300) -> float:
    """Every turn brings about 170 tokens; where fewer than `room` are left, the player begins afresh."""
    said = Random(task)
    for turn in range(turns):
        if player.context_left < room:
            player.new_context()
        await player.ask(f"Turn {turn}: " + "".join(said.choices("bcdfghjklmnpqrstvwxz", k=150)))
    return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a reply took: tokens of its prompt, those of them that were computed, tokens drawn, keys and values kept then."""

    prompt: int
    computed: int
    drawn: int
    kept_bytes: int


class Counting:
    """A sampling client that notes what each request took of the sampler."""

    def __init__(self, inner: SamplingClient, sampler: TorchSampler) -> None:
        self._inner, self._sampler = inner, sampler
        self.turns: list[Turn] = []

    @property
    def version(self) -> int:
        return self._inner.version

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        before = self._sampler.statistics()
        found = await self._inner.sample(prompt, params, n)
        after = self._sampler.statistics()
        computed = after.prompt_tokens - before.prompt_tokens
        drawn = len(found[0].tokens)
        self.turns.append(Turn(prompt=len(prompt), computed=computed, drawn=drawn, kept_bytes=after.kept_bytes))
        return found

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        return await self._inner.logprobs(tokens)

    async def options(self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32]) -> F32:
        return await self._inner.options(prompt, options)

    async def aclose(self) -> None:
        await self._inner.aclose()


async def played(model: TorchModel, *, turns: int) -> tuple[list[Turn], Trajectory]:
    """One episode of these many turns with the model's weights as they are."""
    client = Counting(await model.sampler(), sampler_of(model))
    agent = PolicyAgent(client, model.renderer, Sampling(max_tokens=10), model.info.context_length)
    found = await conduct(plan_of(marathon(turns=turns), agent))
    assert not found.ended.fault, found.ended.detail
    acted = [event for event in found.events if isinstance(event, Acted)]
    (trajectory,) = trajectories(acted, found.ended, {"player": "policy"})
    await client.aclose()
    return client.turns, trajectory


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # where the time goes, in the engine, there is no event loop
async def test_a_turn_costs_what_is_new_in_it(free: LocalBackend, tiny_long: Path) -> None:
    """54 turns, more than 8,000 tokens, a fresh context when the first is full; and what was drawn at the very end is what the
    trainer says of it."""
    model = await free.create_model(str(tiny_long), lora=LORA, seed=1)
    spread(model)
    turns, trajectory = await played(model, turns=TURNS)
    assert len(turns) >= 50
    assert sum(len(context.tokens) for context in trajectory.contexts) >= 8000
    assert len(trajectory.contexts) == 2, "the context was reset once"
    begins = [0, next(i for i in range(1, TURNS) if turns[i].prompt < turns[i - 1].prompt)]
    for number, turn in enumerate(turns):
        last = turns[number - 1]
        kept = 0 if number in begins else (last.prompt + last.drawn - 1) // BLOCK * BLOCK
        assert turn.computed == turn.prompt - kept, f"turn {number}"
    assert max(turn.prompt for turn in turns) > 4000
    assert max(turn.computed for turn in turns) < 260, "the longest prompt costs what the first did"
    assert max(turn.kept_bytes for turn in turns) <= 2**29
    data = [
        Datum(
            tokens=context.tokens,
            mask=context.action_mask,
            logprobs=context.logprobs,
            advantages=np.zeros(len(context.tokens), np.float32),
            weights=context.action_mask.astype(np.float32),
        )
        for context in trajectory.contexts
    ]
    output = await model.forward(data, ImportanceSampling())
    pairs = zip(output.logprobs, data, strict=True)
    difference = np.concatenate([np.abs(found - datum.logprobs)[datum.mask] for found, datum in pairs])
    assert difference.mean() <= 1e-5 and difference.max() <= 1e-4


@pytest.mark.parametrize("kept_blocks", [0, 3])
async def test_without_room_for_it_a_turn_costs_its_whole_context(
    tiny_long: Path, tmp_path: Path, kept_blocks: int
) -> None:
    """The count sees it; and what is kept stays within its bound, from the beginning of the context on."""
    block_bytes = BLOCK * 2 * 2 * 2 * 8 * 4
    async with LocalBackend(dtype="float32", cache_dir=tmp_path, prefix_bytes=kept_blocks * block_bytes) as backend:
        model = await backend.create_model(str(tiny_long), lora=LORA, seed=1)
        turns, _ = await played(model, turns=6)
    assert [turn.computed for turn in turns[2:]] == [turn.prompt - kept_blocks * BLOCK for turn in turns[2:]]
    assert all(turn.kept_bytes == kept_blocks * block_bytes for turn in turns[1:])
