"""What a step trains on: who is compared with whom, the division, the laying over tokens, and metrics that no chance
enters."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparring import Comparable, Datum, F, grpo
from sparring.errors import SettingError
from sparring.learner import GroupMean, RoleBaseline, advantages
from sparring.learner.advantages import Advantages
from sparring.rollout import Batch, Trajectory
from sparring.rollout.comparable import Scope, comparable_sets
from sparring.rollout.events import LATE, Ended, SeatResult
from tests.learner.sets import Prepared, batch, context, f32, prepare, trajectory

NAMES = ("game", "other")


def prepared(
    of: Batch,
    estimator: Advantages | None = None,
    compare: Mapping[str, Scope] | None = None,
    state: Mapping[str, Any] | None = None,
) -> Prepared:
    return prepare(of, grpo(advantages=estimator or GroupMean(), compare=compare), state or {}, NAMES)


class Seen:
    """An estimator that keeps what it was shown and gives every trajectory its place in the order of calls."""

    name = "seen"

    def __init__(self, minimum: int = 1) -> None:
        self.minimum = minimum
        self.groups: list[Comparable] = []

    def __call__(self, group: Comparable, state: Mapping[str, Any]) -> tuple[F, Mapping[str, Any]]:
        self.groups.append(group)
        count = int(state.get("count", 0))
        return np.arange(count, count + len(group), dtype=np.float32), {"count": count + len(group)}


# ------------------------------------------------------------------------------------------------- who is compared with whom


def family() -> list[Trajectory]:
    """Two groups of two episodes, in each of them a solver, a fork of it without a label, one with, and a judge."""
    return [
        trajectory(group * 100 + episode * 10 + number, seat=seat, fork=fork, label=label, group=group, episode=episode)
        for group in (0, 1)
        for episode in (0, 1)
        for number, (seat, fork, label) in enumerate(
            [("solver", "", ""), ("solver", "1", ""), ("solver", "2", "sneaky"), ("judge", "", "")]
        )
    ]


def shown(compare: Mapping[str, Scope]) -> list[list[float]]:
    """The rewards of each set."""
    seen = Seen()
    prepared(batch(*family()), seen, compare)
    return [group.rewards.tolist() for group in seen.groups]


def test_sets_are_of_one_group_seat_and_label() -> None:
    """A fork is compared with the seat that it was made of unless it has a label of its own."""
    assert shown({}) == [
        [0, 1, 10, 11], [2, 12], [3, 13],
        [100, 101, 110, 111], [102, 112], [103, 113],
    ]  # fmt: skip


def test_sets_within_the_episode() -> None:
    assert shown({"solver": "episode"}) == [
        [0, 1], [2], [3, 13], [10, 11], [12],
        [100, 101], [102], [103, 113], [110, 111], [112],
    ]  # fmt: skip


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from("ab"), st.sampled_from(["", "x"])), max_size=20
    ),
    st.dictionaries(st.sampled_from("ab"), st.sampled_from(["group", "episode"])),
)
def test_every_trajectory_is_in_one_set_and_none_is_mixed(
    places: list[tuple[int, int, str, str]], compare: dict[str, Scope]
) -> None:
    drawn = [trajectory(0, group=g, episode=e, seat=s, label=label) for g, e, s, label in places]
    sets = comparable_sets(drawn, compare)
    assert sorted(index for members in sets for index in members) == list(range(len(drawn)))
    for members in sets:
        assert members == sorted(members), "in the order drawn"
        found = {places[index] for index in members}
        assert len({(group, seat, label) for group, _, seat, label in found}) == 1
        if compare.get(drawn[members[0]].seat) == "episode":
            assert len(found) == 1
    assert len(sets) == len({(g, e if compare.get(s) == "episode" else None, s, label) for g, e, s, label in places}), (
        "and none is split"
    )


def test_what_an_estimator_is_shown() -> None:
    seen = Seen()
    many = (context([2, 1]), context([4]))
    made = [
        trajectory(1.5, *many, episode=0, seat="solver", label="x", turn_rewards=[0.5, 1, 0]),
        trajectory(-1, episode=3, seat="solver", label="x"),
    ]
    prepared(batch(*made, source=1), seen)
    (group,) = seen.groups
    assert (group.environment, group.seat, group.label, len(group)) == ("other", "solver", "x", 2)
    assert group.rewards.tolist() == [1.5, -1]
    assert group.lengths.tolist() == [7, 3], "action tokens of all contexts"
    assert group.episodes.tolist() == [0, 3]
    assert group.turn_rewards[0].tolist() == [0.5, 1, 0]
    assert group.turns[0].tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert [array.dtype for array in (group.rewards, group.lengths, group.turns[0])] == [np.float32, np.int32, np.int32]


def test_an_estimator_cannot_change_what_it_is_shown() -> None:
    @advantages
    def centred(group: Comparable) -> F:
        rewards = group.rewards
        rewards -= rewards.mean()
        return rewards

    made = [trajectory(1, turn_rewards=[1]), trajectory(0, episode=1, turn_rewards=[0])]
    with pytest.raises(ValueError, match="read-only"):
        prepared(batch(*made), centred)

    seen = Seen()
    prepared(batch(*made), seen)
    (group,) = seen.groups
    for array in (group.rewards, group.lengths, group.episodes, *group.turn_rewards, *group.turns):
        assert not array.flags.writeable
    assert made[0].turn_rewards.flags.writeable, "the trajectory's own array is as it was"


# -------------------------------------------------------------------------------------------------------- states in order


def test_each_set_continues_from_the_state_of_the_last() -> None:
    made = [trajectory(0, group=group, episode=episode) for group in (7, 3) for episode in (0, 1)]
    after = prepared(batch(*made), Seen(), state={"count": 10})
    values = [float(datum.advantages[datum.mask][0]) * 12 for datum in after.data]
    assert values == pytest.approx([10, 11, 12, 13]), "in the order of the plan, not of the numbers"
    assert after.state == {"count": 14}


def test_a_role_baseline_over_a_step() -> None:
    made = [
        trajectory(reward, group=number, seat=seat)
        for number, (reward, seat) in enumerate([(1, "a"), (1, "b"), (1, "a")])
    ]
    after = prepared(batch(*made), RoleBaseline(decay=0.5))
    values = [float(datum.advantages[datum.mask][0]) * 9 for datum in after.data]
    assert values == pytest.approx([1, 1, 0.5])
    assert after.state == {"game/a/": 0.75, "game/b/": 0.5}
    again = prepared(batch(*made), RoleBaseline(decay=0.5), state=after.state)
    assert again.state == {"game/a/": 0.9375, "game/b/": 0.75}, "it goes on from where the last step left it"


def test_an_estimator_that_writes_into_its_state_harms_nobody() -> None:
    class Careless(Seen):
        def __call__(self, group: Comparable, state: Any) -> tuple[F, Mapping[str, Any]]:
            state["seen"].append(len(group))
            return np.zeros(len(group), np.float32), state

    given_state: dict[str, Any] = {"seen": []}
    assert prepared(batch(trajectory(0)), Careless(), state=given_state).state == {"seen": [1]}
    assert given_state == {"seen": []}, "the committed state is not the estimator's to change"


def test_a_state_that_is_no_json_is_refused() -> None:
    class Numpy(Seen):
        def __call__(self, group: Comparable, state: Any) -> tuple[F, Mapping[str, Any]]:
            return np.zeros(len(group), np.float32), {"mean": group.rewards.mean()}

    with pytest.raises(SettingError, match="'seen': its state must be JSON data"):
        prepared(batch(trajectory(0)), Numpy())


def test_what_a_bad_estimator_returned_is_said() -> None:
    with pytest.raises(SettingError, match=r"'short', 2 trajectories of seat 'solver'.*the shape \(1,\)"):

        @advantages
        def short(group: Comparable) -> F:
            return group.rewards[:1]

        prepared(batch(trajectory(0), trajectory(1, episode=1)), short)


# ------------------------------------------------------------------------------------------------ who divides, and by what


def test_the_divisor_is_the_action_tokens_of_all_judged_trajectories() -> None:
    """Those that are alone in their set, and those of a set without a difference, count too."""
    made = [
        trajectory(1, context([2]), group=0, episode=0),
        trajectory(0, context([5]), group=0, episode=1),
        trajectory(1, context([10]), group=1, episode=0),
        trajectory(1, context([20]), group=1, episode=1),
        trajectory(1, context([3]), group=2, episode=0),
    ]
    after = prepared(batch(*made))
    assert after.metrics["action_tokens"] == 40
    assert after.metrics["uncompared"] == 1
    expected = [0.5, -0.5, 0, 0, 0]
    for datum, value, one in zip(after.data, expected, made, strict=True):
        assert datum.advantages[datum.mask].tolist() == pytest.approx([value / 40] * one.action_tokens)
        assert not datum.advantages[~datum.mask].any()
        assert datum.weights[datum.mask].tolist() == pytest.approx([1 / 40] * one.action_tokens)
        assert not datum.weights[~datum.mask].any()


def test_zero_advantage_is_trained_all_the_same() -> None:
    made = [trajectory(1, episode=episode) for episode in range(4)]
    after = prepared(batch(*made))
    assert len(after.data) == 4, "so that entropy, KL and the rest are measured over every token"
    assert not any(datum.advantages.any() for datum in after.data)
    assert after.metrics["mixed"] == 0


def linear_gradient(data: Sequence[Datum], features: NDArray[np.float64]) -> NDArray[np.float64]:
    """The gradient of a sum of advantage-weighted log-probs whose features are given for each token id: float64, exact
    sums."""
    total = np.zeros(features.shape[1])
    for datum in data:
        total += (datum.advantages.astype(np.float64)[:, None] * features[datum.tokens] * datum.mask[:, None]).sum(0)
    return total


@st.composite
def steps(draw: st.DrawFn) -> Batch:
    made = [
        trajectory(
            draw(st.integers(-3, 3)),
            *[
                context(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
                for _ in range(draw(st.integers(1, 2)))
            ],
            group=group,
            episode=episode,
        )
        for group in range(draw(st.integers(1, 3)))
        for episode in range(draw(st.integers(1, 4)))
    ]
    return batch(*made)


@given(steps(), st.lists(st.integers(0, 30), max_size=5), st.integers(0, 9))
def test_a_step_in_any_number_of_calls_is_one_gradient(of: Batch, cuts: list[int], seed: int) -> None:
    """The division is made before the first call, so that a call need not know of the others."""
    features = np.random.default_rng(seed).normal(size=(64, 3))
    data = prepared(of).data
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [linear_gradient(data[start:end], features) for start, end in pairwise(ends)]
    np.testing.assert_allclose(sum(parts), linear_gradient(data, features), rtol=1e-12, atol=1e-15)


@given(steps())
def test_the_gradient_is_the_mean_over_tokens_of_the_undivided_one(of: Batch) -> None:
    drawn = [one for unit in of.units for one in unit.trajectories]
    tokens = sum(one.action_tokens for one in drawn)
    features = np.ones((64, 1))
    expected = 0.0
    for members in comparable_sets(drawn, {}):
        rewards = [drawn[index].reward for index in members]
        mean = sum(rewards) / len(rewards)
        if len(members) > 1:
            expected += sum((drawn[i].reward - mean) * drawn[i].action_tokens for i in members) / tokens
    found = linear_gradient(prepared(of).data, features)[0]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


@given(steps(), st.randoms(use_true_random=False))
def test_the_order_of_groups_changes_no_advantage_and_no_metric(of: Batch, rng: Any) -> None:
    units = rng.sample(of.units, len(of.units))
    turned = Batch(planned=of.planned, units=tuple(units))
    one, other = prepared(of), prepared(turned)
    assert one.metrics == other.metrics
    assert sorted(datum.advantages.tobytes() for datum in one.data) == sorted(
        d.advantages.tobytes() for d in other.data
    )


@given(steps(), st.integers(1, 5))
def test_prompts_are_nothing_to_the_advantages(of: Batch, longer: int) -> None:
    """Tokens that were not sampled are padding as far as the division is concerned."""

    def padded(one: Trajectory) -> Trajectory:
        contexts = [
            context(
                [int((c.turn == turn).sum()) for turn in range(int(c.turn.max()) + 1)],
                prompt=2 + longer,
                gap=1 + longer,
            )
            for c in one.contexts
        ]
        return trajectory(one.reward, *contexts, group=one.group, episode=one.episode)

    drawn = [one for unit in of.units for one in unit.trajectories]
    plain, more = prepared(of), prepared(batch(*[padded(one) for one in drawn]))
    assert more.digest == plain.digest
    for one, other in zip(plain.data, more.data, strict=True):
        assert other.advantages[other.mask].tolist() == one.advantages[one.mask].tolist()


# ------------------------------------------------------------------------------------------------------- contexts and turns


def test_a_trajectory_of_several_contexts_is_several_examples_of_one_advantage() -> None:
    made = [trajectory(1, context([2, 1]), context([3])), trajectory(0, context([6]), episode=1)]
    after = prepared(batch(*made))
    assert len(after.data) == 3
    assert after.metrics["contexts"] == 3
    assert after.metrics["trajectories"] == 2
    assert after.metrics["length"] == 6
    for datum, value in zip(after.data, [0.5, 0.5, -0.5], strict=True):
        assert datum.advantages[datum.mask].tolist() == pytest.approx([value / 12] * int(datum.mask.sum()))


def test_values_for_each_token_are_laid_over_the_contexts_in_order() -> None:
    @advantages(minimum=1)
    def numbered(group: Comparable) -> list[F]:
        return [np.arange(length, dtype=np.float32) for length in group.lengths]

    made = [trajectory(1, context([2, 1]), context([3]))]
    after = prepared(batch(*made), numbered)
    assert [(datum.advantages[datum.mask] * 6).tolist() for datum in after.data] == [
        pytest.approx([0, 1, 2]),
        pytest.approx([3, 4, 5]),
    ]


def test_credit_by_turn_can_be_written() -> None:
    """The reward of each turn on the tokens of that turn."""

    @advantages(minimum=1)
    def by_turn(group: Comparable) -> list[F]:
        return [rewards[turns] for rewards, turns in zip(group.turn_rewards, group.turns, strict=True)]

    after = prepared(batch(trajectory(3, context([2, 3]), turn_rewards=[1, 2])), by_turn)
    assert (after.data[0].advantages[after.data[0].mask] * 5).tolist() == pytest.approx([1, 1, 2, 2, 2])


def test_an_example_is_what_was_sampled() -> None:
    one = context([2, 1], tokens=7)
    (datum,) = prepared(batch(trajectory(1, one))).data
    assert datum.tokens.tolist() == one.tokens.tolist()
    assert datum.mask.tolist() == one.action_mask.tolist()
    assert datum.logprobs.tolist() == one.logprobs.tolist()
    assert datum.temperature == 1.0


# ------------------------------------------------------------------------------------------------- digest, metrics, few or none


def test_the_digest_is_of_the_advantages_in_order() -> None:
    one, other = trajectory(1), trajectory(0, episode=1)
    base = prepared(batch(one, other)).digest
    assert prepared(batch(one, other)).digest == base
    assert prepared(batch(other, one)).digest != base
    assert prepared(batch(one, trajectory(0.5, episode=1))).digest != base


def test_metrics_of_a_step() -> None:
    made = [
        trajectory(1, context([2], version=3), group=0, truncated=True),
        trajectory(0, context([6], version=5), group=0, episode=1),
        trajectory(1, context([4], version=4), group=1),
    ]
    metrics = prepared(batch(*made, step=5)).metrics
    assert {name: metrics[name] for name in ("units", "trajectories", "contexts", "action_tokens")} == {
        "units": 2, "trajectories": 3, "contexts": 3, "action_tokens": 12
    }  # fmt: skip
    assert metrics["reward"] == pytest.approx(2 / 3)
    assert metrics["length"] == 4
    assert metrics["truncated"] == pytest.approx(1 / 3)
    assert metrics["staleness"] == pytest.approx((2 * 2 + 0 * 6 + 1 * 4) / 12), "over tokens, not trajectories"
    assert metrics["staleness_max"] == 2
    assert (metrics["mixed"], metrics["uncompared"]) == (1, 1), "of the sets of several, how many have unequal rewards"


def test_rewards_of_several_seats_and_labels_are_told_apart() -> None:
    made = [
        trajectory(1, seat="prover", label="helpful"),
        trajectory(0, seat="prover", label="sneaky", fork="2"),
        trajectory(-1, seat="judge"),
    ]
    metrics = prepared(batch(*made)).metrics
    told = {name: value for name, value in metrics.items() if name.startswith("reward")}
    assert told == {
        "reward": 0, "reward/judge": -1, "reward/prover": 0.5, "reward/prover/helpful": 1, "reward/prover/sneaky": 0
    }  # fmt: skip
    alone = prepared(batch(trajectory(1))).metrics
    assert [name for name in alone if name.startswith("reward")] == ["reward"]


def test_groups_of_one_have_no_share_of_mixed_ones() -> None:
    made = [trajectory(reward, group=group) for group, reward in enumerate((0, 1))]
    assert "mixed" not in prepared(batch(*made), RoleBaseline()).metrics


def test_what_episodes_say_of_themselves() -> None:
    episodes = [
        Ended(group=0, member=0, metrics={"illegal": 1.0, "rounds": 4.0}),
        Ended(group=0, member=1, fault="deadline", detail="too slow"),
        Ended(group=0, member=2, metrics={"illegal": 0.0}, results=[SeatResult(seat="judge", unjudged="no verdict")]),
        Ended(group=0, member=3, fault=LATE, detail="a choice"),
    ]
    metrics = prepared(batch(trajectory(1), trajectory(0, episode=2), episodes=episodes)).metrics
    assert (metrics["episodes"], metrics["faults"], metrics["unjudged"]) == (4, 1, 1)
    assert metrics["late"] == 1 and "late" not in prepared(batch(trajectory(1))).metrics
    assert metrics["environment/illegal"] == 0.5, "over the episodes that have it"
    assert metrics["environment/rounds"] == 4


def test_failed_and_unjudged_members_are_simply_not_there() -> None:
    """The mean is over those that were judged."""
    made = [trajectory(reward, episode=episode) for episode, reward in ((1, 1), (4, 0), (6, 0))]
    after = prepared(batch(*made))
    values = [float(datum.advantages[datum.mask][0]) * 9 for datum in after.data]
    assert values == pytest.approx([2 / 3, -1 / 3, -1 / 3])


def test_a_batch_without_units_has_no_examples() -> None:
    """A hole in a deterministic schedule."""
    after = prepared(batch(), state={"kept": 1})
    assert after.data == ()
    assert after.state == {"kept": 1}
    assert after.metrics["units"] == 0
    assert all(np.isfinite(value) for value in after.metrics.values())


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=30), st.randoms(use_true_random=False))
def test_no_order_of_summation_changes_a_metric(rewards: list[float], rng: Any) -> None:
    made = [trajectory(float(reward), episode=episode) for episode, reward in enumerate(rewards)]
    turned = rng.sample(made, len(made))
    assert prepared(batch(*made)).metrics == prepared(batch(*turned)).metrics


def test_metrics_are_plain_numbers() -> None:
    made = [trajectory(1, truncated=True), trajectory(0, episode=1)]
    ended = [Ended(group=0, member=0, metrics={"illegal": 1.0})]
    for name, value in prepared(batch(*made, episodes=ended)).metrics.items():
        assert type(value) is float, name


def test_advantages_are_float32() -> None:
    @advantages
    def doubles(group: Comparable) -> Any:
        return group.rewards.astype(np.float64) / 3

    after = prepared(batch(trajectory(1), trajectory(0, episode=1)), doubles)
    assert {datum.advantages.dtype for datum in after.data} == {np.dtype(np.float32)}
    expected = f32(1 / 3) * np.float32(1 / 6)
    assert after.data[0].advantages[after.data[0].mask].tolist() == [float(expected[0])] * 3
