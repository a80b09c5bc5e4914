"""The presets: what each is made of, against a slow reference on random batches, and what changes nothing about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring import (
    CISPO,
    DPPO,
    DRO,
    GSPO,
    PPO,
    Algorithm,
    Constant,
    Correction,
    DecoupledPPO,
    EqualRewards,
    ImportanceSampling,
    Overlong,
    SequenceMean,
    TokenMean,
    Truncated,
    TruncatedImportanceSampling,
    cispo,
    dapo,
    decoupled_ppo,
    dppo,
    dr_grpo,
    grpo,
    gspo,
    ppo,
    rae,
    reinforce_pp,
    rloo,
)
from sparring.errors import SettingError
from sparring.learner import GAE, PRESETS, Critic, GroupMean, LeaveOneOut, RewardToGo, RoleBaseline
from sparring.learner.credit import whitened
from sparring.learner.measured import Measured
from sparring.learner.updates import Laid, updates
from sparring.rollout import Batch, Trajectory
from tests.learner.sets import batch, context, f32, prepare, trajectory

NAMES = ("game", "other")
PAPER = GroupMean(deviation=True)
MAX_TOKENS = 6


# ------------------------------------------------------------------------------------------------------ what they are made of


@pytest.mark.parametrize(
    ("made", "parts"),
    [
        (grpo(), {"advantages": GroupMean(), "loss": PPO()}),
        (dr_grpo(), {"advantages": GroupMean(), "loss": PPO(), "normalization": Constant()}),
        (
            dapo(),
            {
                "advantages": PAPER,
                "loss": PPO(clip_low_threshold=0.8, clip_high_threshold=1.28),
                "filters": [EqualRewards()],
                "overlong": Overlong(),
            },
        ),
        (rloo(), {"advantages": LeaveOneOut(), "loss": ImportanceSampling()}),
        (reinforce_pp(), {"advantages": RewardToGo(), "loss": PPO(), "whiten": True}),
        (reinforce_pp(baseline=True), {"advantages": GroupMean(), "loss": PPO(), "whiten": True}),
        (gspo(), {"advantages": PAPER, "loss": GSPO(), "normalization": SequenceMean()}),
        (cispo(), {"advantages": PAPER, "loss": CISPO()}),
        (dppo(), {"advantages": GroupMean(), "loss": DPPO()}),
        (decoupled_ppo(), {"advantages": GroupMean(), "loss": DecoupledPPO(), "minibatches": 4}),
        (
            ppo(),
            {
                "advantages": GAE(),
                "loss": PPO(),
                "whiten": True,
                "minibatches": 4,
                "critic": Critic(returns=GAE(decay=1.0)),
            },
        ),
        (rae(), {"advantages": RoleBaseline(decay=0.95), "loss": PPO()}),
    ],
    ids=lambda one: one.name if isinstance(one, Algorithm) else "",
)
def test_the_parts(made: Algorithm, parts: Mapping[str, Any]) -> None:
    assert made == Algorithm(name=made.name, **parts)


def test_each_is_known_by_its_own_name() -> None:
    assert {name: preset().name for name, preset in PRESETS.items()} == {name: name for name in PRESETS}
    for preset in PRESETS.values():
        assert preset(compare={"solver": "episode"}).compare == {"solver": "episode"}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_each_can_be_corrected(name: str, level: Any) -> None:
    plain, corrected = PRESETS[name](), PRESETS[name](correction=Correction(cap=3.0, level=level))
    wanted = (
        DecoupledPPO(cap=3.0, level=level)
        if isinstance(plain.loss, DecoupledPPO)
        else Truncated(loss=plain.loss, cap=3.0, level=level)  # type: ignore[arg-type]
    )
    assert corrected == replace(plain, loss=wanted), "and nothing else changes"


@pytest.mark.parametrize("loss", [DRO(), TruncatedImportanceSampling(), Truncated(loss=PPO())])
def test_what_cannot_be_corrected_is_refused(loss: Any) -> None:
    for preset in (grpo, rae):
        with pytest.raises(
            SettingError, match=r"correction=Correction\(.*leave the correction out, or take Importance"
        ):
            preset(loss=loss, correction=Correction())


@pytest.mark.parametrize("settings", [{"cap": 0.5}, {"cap": float("nan")}, {"level": "turn"}])
def test_a_correction_that_is_none(settings: Mapping[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"Truncated (cap|level)="):
        Correction(**settings)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"normalization": TokenMean}, r"normalization=.*must be TokenMean\(\), SequenceMean\(\) or Constant\(\)"),
        ({"normalization": "token"}, "normalization='token'"),
        ({"whiten": 1}, r"whiten=1\): must be True or False"),
        ({"overlong": True}, r"overlong=True\): must be None or Overlong\(\)"),
        ({"minibatches": 0}, r"minibatches=0\): must be a whole number, at least 1"),
        ({"minibatches": True}, "minibatches=True"),
        ({"minibatches": 2.0}, "minibatches=2.0"),
    ],
)
def test_parts_that_are_none(parts: Mapping[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        replace(grpo(), **parts)


# -------------------------------------------------------------------------------------------------------------- normalization


def weights(algorithm: Algorithm, of: Batch) -> list[list[float]]:
    """For each example, the weights of its scored tokens."""
    return [datum.weights[datum.mask].tolist() for datum in prepare(of, algorithm, {}, NAMES).data]


def test_the_three_divisions_by_hand() -> None:
    """Two trajectories of 3 + 1 (two contexts) and 6 tokens."""
    of = batch(trajectory(1, context([2, 1]), context([1])), trajectory(0, context([6]), episode=1))
    assert weights(replace(grpo(), normalization=TokenMean()), of) == [pytest.approx([1 / 10] * n) for n in (3, 1, 6)]
    by_sequence = [pytest.approx([1 / 8] * 3), pytest.approx([1 / 8]), pytest.approx([1 / 12] * 6)]
    assert weights(replace(grpo(), normalization=SequenceMean()), of) == by_sequence
    constant = [pytest.approx([1 / 14] * n) for n in (3, 1, 6)]
    assert weights(replace(grpo(), normalization=Constant(tokens=7)), of) == constant


@given(st.lists(st.integers(1, 50), min_size=1, max_size=10))
def test_what_the_weights_sum_to(lengths: list[int]) -> None:
    counts = np.array(lengths, np.int32)
    assert (TokenMean().token_weights(counts) * counts).sum() == pytest.approx(1)
    assert (SequenceMean().token_weights(counts) * counts) == pytest.approx(1 / len(lengths))
    assert (Constant(tokens=9).token_weights(counts) * counts).sum() == pytest.approx(np.mean(lengths) / 9)


def test_a_constant_that_is_left_open_is_the_policy_s() -> None:
    assert dr_grpo().resolved(32).normalization == Constant(tokens=32)
    assert dr_grpo(tokens=8).resolved(32).normalization == Constant(tokens=8)
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(SettingError, match=r"Constant\(tokens=.*whole number of tokens, at least 1, or None"):
            Constant(tokens=wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- against slow references


Reference = Callable[[Sequence[float], Sequence[int]], list[float]]


def mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def deviation_of(values: Sequence[float]) -> float:
    return sqrt(mean_of([(value - mean_of(values)) ** 2 for value in values]))


def against_mean(rewards: Sequence[float], _: Sequence[int]) -> list[float]:
    return [reward - mean_of(rewards) for reward in rewards]


def standardised(rewards: Sequence[float], _: Sequence[int]) -> list[float]:
    spread = deviation_of(rewards)
    return [(reward - mean_of(rewards)) / spread if spread else 0.0 for reward in rewards]


def against_others(rewards: Sequence[float], _: Sequence[int]) -> list[float]:
    return [reward - mean_of([*rewards[:at], *rewards[at + 1 :]]) for at, reward in enumerate(rewards)]


def punished(rewards: Sequence[float], longest: Sequence[int]) -> list[float]:
    """DAPO: linear over the last fifth of MAX_TOKENS."""
    cache = MAX_TOKENS / 5
    start = MAX_TOKENS - cache
    return standardised(
        [
            reward + (0 if length <= start else max(-1.0, (start - length) / cache))
            for reward, length in zip(rewards, longest, strict=True)
        ],
        [],
    )


def as_they_are(rewards: Sequence[float], _: Sequence[int]) -> list[float]:
    return list(rewards)


REFERENCES: Mapping[str, Reference] = {
    "grpo": against_mean,
    "dr_grpo": against_mean,
    "dapo": punished,
    "rloo": against_others,
    "reinforce_pp": as_they_are,
    "reinforce_pp_baseline": against_mean,
    "gspo": standardised,
    "cispo": standardised,
    "dppo": against_mean,
    "decoupled_ppo": against_mean,
}


@st.composite
def steps(draw: st.DrawFn, *, seats: Sequence[str] = ("solver",), least: int = 2) -> Batch:
    made = [
        trajectory(
            draw(st.integers(-3, 3)),
            *[
                context(draw(st.lists(st.integers(1, MAX_TOKENS), min_size=1, max_size=2)))
                for _ in range(draw(st.integers(1, 2)))
            ],
            group=group,
            episode=episode,
            seat=seat,
        )
        for group in range(draw(st.integers(1, 4)))
        for episode in range(draw(st.integers(least, 4)))
        for seat in seats
    ]
    return batch(*made)


def longest(one: Trajectory) -> int:
    return max(int((part.turn == turn).sum()) for part in one.contexts for turn in set(part.turn.tolist()) if turn >= 0)


def slow(name: str, of: Batch) -> list[float]:
    """One value for each trajectory, with one comparison set for each unit and seat."""
    values: dict[int, float] = {}
    drawn = [one for unit in of.units for one in unit.trajectories]
    for unit in of.units:
        for seat in {one.seat for one in unit.trajectories}:
            members = [at for at, one in enumerate(drawn) if one.group == unit.group and one.seat == seat]
            rewards = [drawn[at].reward for at in members]
            found = REFERENCES[name](rewards, [longest(drawn[at]) for at in members])
            values |= dict(zip(members, found, strict=True))
    if name.startswith("reinforce_pp"):
        for seat in {one.seat for one in drawn}:
            mine = [at for at, one in enumerate(drawn) if one.seat == seat]
            every = [values[at] for at in mine for _ in range(drawn[at].action_tokens)]
            spread = deviation_of(every)
            values |= {at: (values[at] - mean_of(every)) / spread if spread > 1e-12 else 0.0 for at in mine}
    return [values[at] for at in range(len(drawn))]


def found_by(name: str, of: Batch) -> list[float]:
    rows = prepare(of, PRESETS[name]().resolved(MAX_TOKENS), {}, NAMES).decided.values
    assert all((row == row[0]).all() for row in rows)
    return [float(row[0]) for row in rows]


@pytest.mark.parametrize("name", REFERENCES)
@given(of=steps(seats=("first", "second")))
def test_advantages_are_those_of_a_slow_reference(name: str, of: Batch) -> None:
    assert found_by(name, of) == pytest.approx(slow(name, of), rel=1e-5, abs=1e-5)


# -------------------------------------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("name", [name for name in REFERENCES if name != "reinforce_pp"])
@given(of=steps(), shift=st.integers(-50, 50))
def test_a_reward_for_a_whole_set_changes_nothing(name: str, of: Batch, shift: int) -> None:
    """Each group by another amount: 1, 2, 3 times the shift."""
    shifted = [replace(t, reward=t.reward + shift * (t.group + 1)) for unit in of.units for t in unit.trajectories]
    assert found_by(name, batch(*shifted)) == pytest.approx(found_by(name, of), rel=1e-4, abs=1e-4)


@given(of=steps(), shift=st.integers(-50, 50))
def test_for_reinforce_pp_it_must_be_one_reward_for_the_whole_step(of: Batch, shift: int) -> None:
    shifted = [replace(t, reward=t.reward + shift) for unit in of.units for t in unit.trajectories]
    assert found_by("reinforce_pp", batch(*shifted)) == pytest.approx(found_by("reinforce_pp", of), abs=1e-3)


@pytest.mark.parametrize("name", REFERENCES)
@given(of=steps(), rng=st.randoms(use_true_random=False))
def test_the_order_of_groups_and_members_changes_nothing(name: str, of: Batch, rng: Any) -> None:
    drawn = [one for unit in rng.sample(of.units, len(of.units)) for one in unit.trajectories]
    turned = batch(*rng.sample(drawn, len(drawn)))
    places = {id(one): at for at, one in enumerate(one for unit in of.units for one in unit.trajectories)}
    order = [places[id(one)] for unit in turned.units for one in unit.trajectories]
    found = found_by(name, of)
    assert found_by(name, turned) == [found[at] for at in order], "to the last bit"


@pytest.mark.parametrize("name", PRESETS)
@given(of=steps(), longer=st.integers(1, 5))
def test_prompts_and_what_stands_between_turns_change_nothing(name: str, of: Batch, longer: int) -> None:
    algorithm = PRESETS[name]().resolved(MAX_TOKENS)

    def padded(one: Trajectory) -> Trajectory:
        contexts = [
            context([int((c.turn == turn).sum()) for turn in range(int(c.turn.max()) + 1)], prompt=9, gap=1 + longer)
            for c in one.contexts
        ]
        return replace(one, contexts=tuple(contexts))

    drawn = [padded(one) for unit in of.units for one in unit.trajectories]
    rng = np.random.default_rng(0)
    measured = Measured(values=tuple(rng.normal(size=one.action_tokens).astype(np.float32) for one in drawn))
    plain, more = (prepare(one, algorithm, {}, NAMES, measured=measured) for one in (of, batch(*drawn)))
    assert more.digest == plain.digest
    for one, other in zip(plain.data, more.data, strict=True):
        assert other.advantages[other.mask].tolist() == one.advantages[one.mask].tolist()
        assert other.weights[other.mask].tolist() == one.weights[one.mask].tolist()


# -------------------------------------------------------------------------------------------------- seats are never compared


def edged(rng: Any, edge: float, groups: int = 4) -> Batch:
    """A game of luck whose first seat is worth `edge` more, whoever plays it."""
    made = [
        trajectory(rng.randint(0, 1) + (edge if seat == "first" else 0.0), seat=seat, group=group, episode=episode)
        for group in range(groups)
        for episode in range(4)
        for seat in ("first", "second")
    ]
    return batch(*made)


@pytest.mark.parametrize("name", REFERENCES)
@given(rng=st.randoms(use_true_random=False), edge=st.sampled_from([1.0, 8.0]))
def test_a_first_mover_s_edge_is_no_advantage(name: str, rng: Any, edge: float) -> None:
    state = rng.getstate()
    without = found_by(name, edged(rng, 0.0))
    rng.setstate(state)
    assert found_by(name, edged(rng, edge)) == pytest.approx(without, abs=1e-5)


def test_nor_is_it_with_running_baselines_once_they_have_settled() -> None:
    state: Mapping[str, Any] = {}
    gained: dict[str, list[float]] = {"first": [], "second": []}
    for step in range(60):
        luck = [(at * 7 + step) % 2 for at in range(8)]
        made = [
            trajectory(luck[at] + (5.0 if seat == "first" else 0.0), seat=seat, group=at)
            for at in range(8)
            for seat in ("first", "second")
        ]
        done = prepare(batch(*made), rae(decay=0.9), state, NAMES)
        state = done.state
        for one, row in zip(made, done.decided.values, strict=True):
            gained[one.seat] += [float(row[0])] * (step >= 20)
    assert mean_of(gained["first"]) == pytest.approx(mean_of(gained["second"]), abs=1e-3)


@pytest.mark.parametrize("name", [*REFERENCES, "rae"])
def test_where_seats_are_mixed_the_edge_is_an_advantage(name: str) -> None:
    """The planted defect: the same numbers under one seat's name. Every test above would see it."""
    rng = np.random.default_rng(0)
    made = [
        trajectory(
            float(rng.integers(0, 2)) + 8.0 * first, seat="solver", group=group, episode=2 * episode + (not first)
        )
        for group in range(4)
        for episode in range(4)
        for first in (True, False)
    ]
    found = [float(row[0]) for row in prepare(batch(*made), PRESETS[name]().resolved(6), {}, NAMES).decided.values]
    assert mean_of(found[::2]) > mean_of(found[1::2]) + 0.5


# ------------------------------------------------------------------------------------------------------------------ whitening


def test_whitening_by_hand() -> None:
    """Over tokens: a trajectory of three tokens counts three times. Mean 1, deviation sqrt(3)."""
    rows = whitened([f32(0, 0, 0), f32(4)])
    assert [row.tolist() for row in rows] == [pytest.approx([-1 / sqrt(3)] * 3), pytest.approx([3 / sqrt(3)])]
    assert [row.tolist() for row in whitened([f32(0.1, 0.1), f32(0.1)])] == [[0, 0], [0]], "not even by rounding"
    assert whitened([]) == []


def test_who_was_not_compared_is_not_whitened() -> None:
    """A set that is too small keeps advantage 0, and does not count for mean and deviation."""
    algorithm = reinforce_pp(baseline=True)
    two = [trajectory(1, group=0), trajectory(0, group=0, episode=1)]
    alone = trajectory(100, group=1)
    values = [row.tolist() for row in prepare(batch(*two, alone), algorithm, {}, NAMES).decided.values]
    assert values == [[1] * 3, [-1] * 3, [0] * 3]


def test_labels_and_environments_are_whitened_apart() -> None:
    made = [
        trajectory(reward * scale, seat="prover", label=label, group=0, episode=at)
        for label, scale in (("helpful", 1.0), ("sneaky", 10.0))
        for at, reward in enumerate((0, 1))
    ]
    found = [float(row[0]) for row in prepare(batch(*made), reinforce_pp(), {}, NAMES).decided.values]
    assert found == pytest.approx([-1, 1, -1, 1])


# ------------------------------------------------------------------------------------------------------- overlong, minibatches


@pytest.mark.parametrize(
    ("length", "reward"), [(1, 0), (80, 0), (81, -0.05), (90, -0.5), (100, -1), (101, -1), (900, -1)]
)
def test_long_replies_are_worth_less(length: int, reward: float) -> None:
    assert Overlong(limit=100).reward(length) == pytest.approx(reward)


def test_the_longest_reply_counts_and_the_reward_shown_is_the_environment_s() -> None:
    one, other = trajectory(1, context([3, 10]), context([4])), trajectory(1, context([8, 9]), episode=1)
    done = prepare(batch(one, other), replace(dapo(), advantages=RewardToGo()).resolved(10), {}, NAMES)
    assert [float(row[0]) for row in done.decided.values] == pytest.approx([1 - 1, 1 - 0.5])
    assert done.metrics["reward"] == 1
    assert done.metrics["overlong"] == pytest.approx(-0.75)
    assert "overlong" not in prepare(batch(one), grpo(), {}, NAMES).metrics


def test_an_overlong_that_cannot_be() -> None:
    for wrong in ({"limit": 0}, {"limit": 1.5}, {"share": 0}, {"share": 1.1}, {"share": float("nan")}):
        with pytest.raises(SettingError, match=r"Overlong\((limit|share)="):
            Overlong(**wrong)
    with pytest.raises(SettingError, match=r"no reply is longer than sampling.max_tokens=16; leave the limit out"):
        dapo(overlong=Overlong(limit=17)).resolved(16)
    assert dapo(overlong=Overlong(limit=12)).resolved(16).overlong == Overlong(limit=12)


@given(of=steps(), count=st.integers(1, 4))
def test_updates_are_whole_units_each_once_and_divided_by_themselves(of: Batch, count: int) -> None:
    values = prepare(of, grpo(), {}, NAMES).decided.values
    made = updates(of, [Laid(advantages=row) for row in values], TokenMean(), minibatches=count)
    assert len(made) == min(count, len(of.units))
    contexts = [part for unit in of.units for one in unit.trajectories for part in one.contexts]
    assert [datum.tokens for update in made for datum in update.data] == [part.tokens for part in contexts]
    sizes = [len(of.units) * number // count for number in range(count + 1)]
    wanted = [end - start for start, end in pairwise(sizes) if end > start]
    assert max(wanted) - min(wanted) <= 1
    for update in made:
        assert sum(float(datum.weights.sum()) for datum in update.data) == pytest.approx(1)
    starts = np.cumsum([0, *wanted])
    for update, (start, end) in zip(made, pairwise(starts.tolist()), strict=True):
        assert len(update.data) == sum(len(t.contexts) for unit in of.units[start:end] for t in unit.trajectories)
