"""Every preset on problems whose optimum is known: a bandit, and a walk of two moves whose first one pays later."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sparring import GAE, Critic, distillation, grpo, ppo
from sparring.backend import CrossEntropy, Datum
from sparring.backend.local.objectives import Scored, clipped_value, objective
from sparring.backend.losses import clip_thresholds, required_fields
from sparring.learner import PRESETS, Algorithm, TurnMean
from sparring.learner.measured import Measured
from sparring.learner.step import decide
from sparring.learner.updates import Laid, Update, updates
from sparring.rollout import Context, Trajectory
from tests.learner.sets import batch, trajectory

GROUPS, MEMBERS = 4, 8


class Table:
    """A policy of one distribution for each state, and values likewise; state and action are token ids."""

    def __init__(self, states: int, actions: int, seed: int) -> None:
        self.logits = torch.zeros(states, actions, dtype=torch.float64, requires_grad=True)
        self.values = torch.zeros(states, dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.logits], lr=0.2)
        self.critic = torch.optim.Adam([self.values], lr=0.2)
        self.rng = np.random.default_rng(seed)

    def draw(self, state: int) -> tuple[int, float]:
        """An action and its log-prob."""
        lp = torch.log_softmax(self.logits[state].detach(), -1)
        action = int(self.rng.choice(len(lp), p=lp.exp().numpy()))
        return action, float(lp[action])

    def logprobs(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(self.logits, -1)[states].gather(1, actions[:, None])[:, 0]


def played(moves: list[tuple[int, int, float]]) -> Context:
    """A context of [state, action] for each move."""
    tokens = [token for state, action, _ in moves for token in (state, action)]
    mask = np.tile([False, True], len(moves))
    logprobs = np.zeros(len(tokens), np.float32)
    logprobs[mask] = [lp for _, _, lp in moves]
    turn = np.where(mask, np.repeat(np.arange(len(moves)), 2), -1).astype(np.int16)
    return Context(
        tokens=np.array(tokens, np.int32),
        action_mask=mask,
        logprobs=logprobs,
        versions=np.where(mask, 0, -1).astype(np.int32),
        turn=turn,
        temperature=1.0,
    )


def joined(data: tuple[Any, ...], name: str) -> torch.Tensor:
    return torch.cat([torch.from_numpy(getattr(datum, name)[datum.mask]).double() for datum in data])


def places(data: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """State and action of each scored token."""
    at = [np.flatnonzero(datum.mask) for datum in data]
    states = np.concatenate([datum.tokens[where - 1] for datum, where in zip(data, at, strict=True)])
    actions = np.concatenate([datum.tokens[where] for datum, where in zip(data, at, strict=True)])
    return torch.from_numpy(states).long(), torch.from_numpy(actions).long()


def descend(table: Table, algorithm: Algorithm, update: Update) -> None:
    """One optimizer step, as an engine would make it."""
    data: tuple[Datum, ...] = update.data
    low, high = clip_thresholds(algorithm.loss)
    lp, q = table.logprobs(*places(data)), joined(data, "logprobs")
    scored = Scored(
        q=q,
        advantages=joined(data, "advantages"),
        weights=joined(data, "weights"),
        low=torch.full_like(q, low),
        high=torch.full_like(q, high),
        sequence=torch.cat([torch.full((int(d.mask.sum()),), number) for number, d in enumerate(data)]),
        proximal=joined(data, "proximal_logprobs") if required_fields(algorithm.loss) else None,
    )
    assert not isinstance(algorithm.loss, CrossEntropy)
    table.adam.zero_grad()
    objective(algorithm.loss, lp, scored).loss.backward()
    table.adam.step()
    if algorithm.critic is not None:
        states, _ = places(update.critic)
        rows = [joined(update.critic, name) for name in ("old_values", "returns", "weights")]
        table.critic.zero_grad()
        clipped_value(table.values[states], *rows, clip=float("inf")).loss.backward()
        table.critic.step()


def learn(
    table: Table,
    algorithm: Algorithm,
    drawn: list[Trajectory],
    state: dict[str, Any],
    reference: tuple[np.ndarray, ...] = (),
) -> dict[str, Any]:
    """One step of a run: what is decided, then its updates. Returns the durable state."""
    of = batch(*drawn)
    values = [table.values[places((d,))[0]].detach().numpy().astype(np.float32) for d in map(_datum, drawn)]
    decided = decide(
        of, algorithm.credit, state, ["game"], measured=Measured(values=tuple(values), reference=reference)
    )
    laid = [
        Laid(
            advantages=row,
            proximal=one.contexts[0].logprobs[one.contexts[0].action_mask] if required_fields(algorithm.loss) else None,
            returns=decided.returns[index] if decided.returns else None,
            old_values=values[index] if decided.returns else None,
        )
        for index, (one, row) in enumerate(zip(drawn, decided.values, strict=True))
    ]
    for update in updates(of, laid, algorithm.normalization, minibatches=algorithm.minibatches):
        descend(table, algorithm, update)
    return dict(decided.durable)


def _datum(one: Trajectory) -> Datum:
    """Its first context, for places alone."""
    (context,), zeros = one.contexts, np.zeros(len(one.contexts[0].tokens), np.float32)
    return Datum(
        tokens=context.tokens, mask=context.action_mask, logprobs=context.logprobs, advantages=zeros, weights=zeros
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_bandit_is_solved(name: str) -> None:
    """Three arms that pay 0.2, 0.5 and 0.8, give or take one; and no arm pays for being the first of the episode."""
    algorithm, table = PRESETS[name]().resolved(4), Table(1, 3, seed=1)
    state: dict[str, Any] = {}
    for _ in range(40):
        drawn = []
        for number in range(GROUPS * MEMBERS):
            arm, lp = table.draw(0)
            reward = (0.2, 0.5, 0.8)[arm] + float(table.rng.normal(0, 0.3))
            drawn.append(
                trajectory(
                    reward, played([(0, arm, lp)]), group=number // MEMBERS, episode=number % MEMBERS, turn_rewards=[0]
                )
            )
        state = learn(table, algorithm, drawn, state)
    best = torch.softmax(table.logits[0].detach(), -1)[2].item()
    assert best > 0.9, f"the best arm is drawn with probability {best:.2f}"


def test_a_teacher_s_distribution_is_found() -> None:
    """The reverse KL has its one minimum, 0, at the teacher's probabilities, whatever the arms pay."""
    algorithm, table, wanted = distillation("teacher"), Table(1, 4, seed=1), np.array([0.05, 0.15, 0.3, 0.5])
    table.adam = torch.optim.Adam([table.logits], lr=0.05)
    for _ in range(150):
        arms = [table.draw(0) for _ in range(GROUPS * MEMBERS)]
        drawn = [trajectory(arm == 0, played([(0, arm, lp)]), group=number) for number, (arm, lp) in enumerate(arms)]
        learn(table, algorithm, drawn, {}, tuple(np.log(wanted[[arm]]).astype(np.float32) for arm, _ in arms))
    found = torch.softmax(table.logits[0].detach(), -1).numpy()
    assert found == pytest.approx(wanted, abs=0.06)


WALKERS = {
    "group mean": grpo(),
    "by turn": grpo(advantages=TurnMean()),
    "critic": ppo(minibatches=1),
    "critic, short sight": ppo(decay=0.5, minibatches=1, critic=Critic(returns=GAE(decay=0.5))),
}


@pytest.mark.parametrize("name", WALKERS)
def test_a_walk_whose_first_move_pays_later(name: str) -> None:
    """State 0: left pays 0 and leads to state 1, right pays 0.5 and to state 2. State 1 pays 0 or 2, state 2 pays 0 or 1. The
    optimum, 2, goes left, then by the second action."""
    algorithm, table = WALKERS[name], Table(3, 2, seed=2)
    state: dict[str, Any] = {}
    for _ in range(80):
        drawn = []
        for number in range(GROUPS * MEMBERS):
            first, lp = table.draw(0)
            then = 1 + first
            second, more = table.draw(then)
            paid = [0.5 * first, second * (2.0 if then == 1 else 1.0)]
            context = played([(0, first, lp), (then, second, more)])
            drawn.append(
                trajectory(sum(paid), context, group=number // MEMBERS, episode=number % MEMBERS, turn_rewards=paid)
            )
        state = learn(table, algorithm, drawn, state)
    probs = torch.softmax(table.logits.detach(), -1)
    value = sum(
        float(probs[0, first]) * (0.5 * first + float(probs[1 + first, 1]) * (2.0 if first == 0 else 1.0))
        for first in (0, 1)
    )
    assert value > 1.8, f"the policy earns {value:.2f} of 2"
    if algorithm.critic is not None:
        assert table.values[1].item() == pytest.approx(2.0, abs=0.3), "its values are those of the policy"


def test_without_advantages_nothing_is_learned() -> None:
    """The planted defect of both tests: a sign that is turned."""

    def turned(group: Any, state: Any) -> Any:
        found, state = grpo().advantages(group, state)
        return -np.asarray(found), state

    class Turned:
        name, minimum = "turned", 2
        __call__ = staticmethod(turned)

    algorithm, table = replace(grpo(), advantages=Turned()), Table(1, 2, seed=1)
    for _ in range(20):
        drawn = []
        for number in range(GROUPS * MEMBERS):
            arm, lp = table.draw(0)
            drawn.append(
                trajectory(float(arm), played([(0, arm, lp)]), group=number // MEMBERS, episode=number % MEMBERS)
            )
        learn(table, algorithm, drawn, {})
    assert torch.softmax(table.logits[0].detach(), -1)[1].item() < 0.1
