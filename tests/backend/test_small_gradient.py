"""The gradient of small policies against the exact policy gradient of Kuhn poker, whose whole tree is walked.

The surrogate is what both seats win together, each against the other's policy as it was: J(x) = V(x, y) - V(y, x), where
V(first, second) is what the first seat wins; its gradient at x = y is what self-play samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from sparring.backend import PPO, Adam, Datum, ImportanceSampling, Loss, reply_tokens
from sparring.backend.small import SmallBackend
from sparring.backend.small.model import SmallModel

MODELS = ("table", "network")
MOVES = ("Pass", "Bet")
LEAVES = {"pp": 1, "pbp": 0, "pbb": 2, "bp": 0, "bb": 2}
"""Every way a game can go, with what the better card wins where the cards are shown."""

FOLDED = {"pbp": -1.0, "bp": 1.0}
RATE = 0.05
KEYS = tuple(f"{card}{moves}" for moves in ("", "p", "b", "pb") for card in range(3))

Bets = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Line:
    """A way a game can go: the deal, the moves, and what the first seat wins."""

    cards: tuple[int, int]
    moves: str
    value: float

    def odds(self, first: Bets, second: Bets) -> float:
        """How likely it is."""
        found = 1 / 6
        for place, key in enumerate(self.keys):
            bets = (first, second)[place % 2][key]
            found *= bets if self.moves[place] == "b" else 1 - bets
        return found

    @property
    def keys(self) -> list[str]:
        """The information set of each move."""
        return [f"{self.cards[place % 2]}{self.moves[:place]}" for place in range(len(self.moves))]


def lines() -> Iterator[Line]:
    for cards in permutations(range(3), 2):
        better = 1 if cards[0] > cards[1] else -1
        for moves, shown in LEAVES.items():
            yield Line(cards, moves, FOLDED.get(moves, shown * better))


def value(first: Bets, second: Bets) -> float:
    return sum(line.odds(first, second) * line.value for line in lines())


def exact(bets: Bets) -> dict[str, float]:
    """dJ / d(logit of the bet), by differences: p (1 - p) times what changes with how likely the bet is."""
    return {key: bets[key] * (1 - bets[key]) * _slope(bets, key) for key in KEYS}


def _slope(bets: Bets, key: str) -> float:
    """J is linear in each probability, so that any difference is exact."""
    zero, one = {**bets, key: 0.0}, {**bets, key: 1.0}
    return (value(one, bets) - value(bets, one)) - (value(zero, bets) - value(bets, zero))


def prompt(model: SmallModel, key: str) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return model.renderer.start([{"role": "user", "content": f"You know {key}."}])


def tree(model: SmallModel, bets: Bets, baseline: float) -> list[Datum]:
    """Each move of each line: what its player won, less a baseline, weighed with how likely the line is."""
    data = list[Datum]()
    for line in lines():
        for place, key in enumerate(line.keys):
            reply = int(line.moves[place] == "b")
            tokens = np.concatenate([prompt(model, key), reply_tokens(model.renderer, MOVES[reply])])
            row = (np.arange(len(tokens)) == len(tokens) - 1).astype(np.float32)
            won = line.value * (-1) ** place
            lp = np.log(bets[key] if reply else 1 - bets[key])
            data.append(
                Datum(
                    tokens=tokens,
                    mask=row > 0,
                    logprobs=row * np.float32(lp),
                    advantages=row * np.float32(line.odds(bets, bets) * (won - baseline)),
                    weights=row,
                )
            )
    return data


async def bets_of(model: SmallModel) -> dict[str, float]:
    client = await model.sampler()
    replies = [reply_tokens(model.renderer, move) for move in MOVES]
    return {key: float(np.exp((await client.options(prompt(model, key), replies))[1])) for key in KEYS}


async def uneven(name: str) -> SmallModel:
    """A model after some steps, so that its strategy is not uniform."""
    model = await SmallBackend(replies=MOVES).create_model(name, seed=5)
    for _ in range(12):
        await model.forward_backward(tree(model, await bets_of(model), 0.0), ImportanceSampling())
        await model.optim_step(Adam(learning_rate=0.1 if name == "table" else 0.001))
    return model


def plain(rate: float) -> Adam:
    """A first step of Adam that is `rate` times the gradient, within one in a million."""
    return Adam(learning_rate=rate * 1e6, eps=1e6, grad_clip_norm=0.0)


async def fresh(model: SmallModel, folder: Path) -> SmallModel:
    """The same weights with an optimizer that has made no step."""
    return await SmallBackend(replies=MOVES).create_from_state(
        await model.save_state(str(folder / "state")), optimizer=False
    )


async def off(model: SmallModel, before: Bets) -> dict[str, float]:
    """How much further each information set moved in one step than the exact gradient says: the logits of Bet and Pass go
    apart by twice of it."""
    after = await bets_of(model)
    return {key: _logit(after[key]) - _logit(before[key]) - 2 * RATE * want for key, want in exact(before).items()}


def test_the_tree_is_kuhn_poker() -> None:
    """In equilibrium the first seat loses 1/18; the exact gradient of an information set is 0 where it is indifferent."""
    third = 1 / 3
    bets = {"0": third, "1": 0, "2": 1, "0pb": 0, "1pb": 2 * third, "2pb": 1}
    bets |= {"0p": third, "1p": 0, "2p": 1, "0b": 0, "1b": third, "2b": 1}
    assert value(bets, bets) == pytest.approx(-1 / 18)
    assert sum(line.odds(bets, bets) for line in lines()) == pytest.approx(1)
    assert max(map(abs, exact(bets).values())) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("loss", [ImportanceSampling(), PPO()])
@pytest.mark.parametrize("baseline", [0.0, 0.7])
async def test_a_table_has_the_exact_gradient(loss: Loss, baseline: float, tmp_path: Path) -> None:
    """Of each information set: Bet's logit and Pass's go apart by twice what the exact gradient says."""
    model = await fresh(await uneven("table"), tmp_path)
    before = await bets_of(model)
    assert max(before.values()) > 0.6 and min(before.values()) < 0.4
    await model.forward_backward(tree(model, before, baseline), loss)
    await model.optim_step(plain(RATE))
    assert max(map(abs, (await off(model, before)).values())) < 1e-5


@pytest.mark.parametrize("model", MODELS)
async def test_a_step_gains_what_its_gradient_promises(model: str, tmp_path: Path) -> None:
    """J(x + rate g) - J(x) = rate |g|^2, to first order, with the norm that the step tells: g is J's gradient, whole."""
    small = await fresh(await uneven(model), tmp_path)
    before = await bets_of(small)
    await small.forward_backward(tree(small, before, 0.3), PPO())
    rate = 1e-3 if model == "table" else 1e-6
    stepped = await small.optim_step(plain(rate))
    after = await bets_of(small)
    promised = rate * stepped.metrics["gradient_norm"] ** 2
    gained = value(after, before) - value(before, after) - (value(before, before) - value(before, before))
    assert gained == pytest.approx(promised, rel=0.03) and promised > 1e-6


@pytest.mark.parametrize("planted", [-1.0, 1.2])
async def test_a_wrong_gradient_is_seen(planted: float, tmp_path: Path) -> None:
    """The same comparison fails for advantages of the wrong sign or scale."""
    model = await fresh(await uneven("table"), tmp_path)
    before = await bets_of(model)
    data = [replace(one, advantages=one.advantages * np.float32(planted)) for one in tree(model, before, 0.0)]
    await model.forward_backward(data, ImportanceSampling())
    await model.optim_step(plain(RATE))
    assert max(map(abs, (await off(model, before)).values())) > 1e-4


def _logit(p: float) -> float:
    return float(np.log(p / (1 - p)))
