"""What people are told of a run: means with intervals, who got where, the last line."""

from math import sqrt
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.errors import SettingError
from sparring.learner.history import estimate_mean, headline_name, history, last_line, read_events
from sparring.rollout.events import LATE, Ended, Evaluated, Planned, Stepped, Timed, encode, segment
from sparring.rollout.journal import SqliteSegments
from tests.learner.story import story

shares = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=200)
numbers = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50)


@pytest.mark.parametrize(
    ("ones", "count", "low", "high"),
    [
        (0, 20, 0.0, 0.1611),
        (20, 20, 0.8389, 1.0),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_wilsons_interval_equals_published_values(ones: int, count: int, low: float, high: float) -> None:
    """81/263 and 15/148: Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    found = estimate_mean([1.0] * ones + [0.0] * (count - ones))
    assert found is not None
    assert (found.mean, found.count) == (ones / count, count)
    assert found.low == pytest.approx(low, abs=1e-4)
    assert found.high == pytest.approx(high, abs=1e-4)


@given(shares)
def test_a_share_stays_between_0_and_1_and_inside_its_interval(values: list[float]) -> None:
    found = estimate_mean(values)
    assert found is not None
    assert 0 <= found.low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= found.high <= 1
    assert found.low < found.high


def test_other_values_get_the_normal_interval() -> None:
    found = estimate_mean([2.0, 4.0, 9.0])
    assert found is not None
    half = 1.959964 * sqrt(13) / sqrt(3)  # the sample variance of 2, 4, 9 is 13
    assert found.mean == 5.0
    assert found.low == pytest.approx(5 - half)
    assert found.high == pytest.approx(5 + half)


@given(numbers)
def test_an_interval_holds_its_mean(values: list[float]) -> None:
    found = estimate_mean(values)
    assert found is not None
    assert found.low <= found.mean <= found.high


def test_what_was_not_judged_is_missing_and_not_zero() -> None:
    found = estimate_mean([None, 1.0, None])
    assert found is not None
    assert (found.mean, found.count, found.missing) == (1.0, 1, 2)
    assert estimate_mean([None]) is None
    assert estimate_mean([]) is None
    assert str(estimate_mean([0.0, 1.0])) == "0.50 [0.09, 0.91]"


def test_one_value_alone_has_no_spread() -> None:
    found = estimate_mean([3.5])
    assert found is not None
    assert (found.low, found.high) == (3.5, 3.5)


def test_steps_are_numbered_by_the_version_they_make() -> None:
    told = history(story(12, policies=("alice", "bob")))
    assert [step.version for step in told.of("alice")] == list(range(1, 13))
    assert told.policies == ("alice", "bob")
    assert told.versions == 12
    assert told.steps[0].timing["seconds"] == 7.5


def test_the_time_is_that_of_the_slowest_policy_over_all_its_steps() -> None:
    assert history(story(12)).seconds == 12 * 7.5
    events = [
        msg
        if not isinstance(msg, Timed) or msg.policy == "alice"
        else Timed(policy=msg.policy, step=msg.step, timing={"seconds": 1.0})
        for msg in story(4, policies=("alice", "bob"))
    ]
    assert history(events).seconds == 4 * 7.5


def test_units_are_where_the_events_say() -> None:
    events = story(4)
    (whole,) = history(events).units
    assert (whole.dispatched, whole.trained, whole.outside) == (8, 8, 0)
    last = max(number for number, event in enumerate(events) if isinstance(event, Stepped))
    (planned,) = history(events[:last]).units
    assert (planned.dispatched, planned.trained, planned.outside) == (8, 6, 0)
    (unplanned,) = history(
        [event for event in events[:last] if not (isinstance(event, Planned) and event.step == 3)]
    ).units
    assert (unplanned.dispatched, unplanned.trained, unplanned.outside) == (8, 6, 2)


def test_faults_and_what_was_not_judged_are_counted_with_the_first_message() -> None:
    told = history(story(4))
    assert [(one.kind, one.count, one.first) for one in told.faults] == [("KeyError", 1, "KeyError: 'x'")]
    assert [(one.kind, one.count, one.first) for one in told.unjudged] == [
        ("verifier gave up <soon>", 1, "seat solver")
    ]
    assert told.episodes == 4 * 2 * 8 and told.late == 0


def test_what_was_dropped_for_its_age_is_no_fault() -> None:
    late = [Ended(group=0, member=member, fault=LATE, detail="took long") for member in range(3)]
    told = history([*story(1), *late])
    assert told.faults == () and told.late == 3 and told.episodes == 2 * 8 + 3


def test_the_last_line_tells_the_first_and_the_last_version() -> None:
    events = story(12, late=True)
    values = {event.version: event.values for event in events if isinstance(event, Evaluated)}
    before, after = estimate_mean(values[0]), estimate_mean(values[12])
    assert before is not None
    assert after is not None
    assert last_line(history(events)) == f"held-out reward: {before.mean:.3f} -> {after.mean:.3f} (12 steps, 90 s)"


def test_the_last_line_of_a_run_without_held_out_tasks_says_so() -> None:
    events = story(3, held_out=())
    rewards = [event.metrics["reward"] for event in events if isinstance(event, Stepped)]
    expected = f"training reward (no held-out tasks): {rewards[0]:.3f} -> {rewards[-1]:.3f} (3 steps, 22 s)"
    assert last_line(history(events)) == expected
    assert last_line(history(events[:1])) == "no held-out tasks and no rewards (0 steps, 0 s)"


def test_a_headline_metric_has_its_own_name() -> None:
    judged = Evaluated(
        name="debate", version=0, headline="judge_correct", values=[None], rewards=[None], transcripts=[[]]
    )
    assert headline_name(judged) == "judge_correct"
    assert last_line(history([judged])) == "held-out judge_correct: unjudged -> unjudged (0 steps, 0 s)"


def test_events_are_read_from_a_run_folder(tmp_path: Path) -> None:
    events = story(2)
    store = SqliteSegments(tmp_path / "journal.db")
    store.append(segment([encode(event) for event in events[:5]]))
    store.append(segment([encode(event) for event in events[5:]]))
    store.close()
    assert list(read_events(tmp_path)) == events


def test_a_folder_without_a_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"has no journal\.db: give the folder of a run"):
        read_events(tmp_path)
    assert list(tmp_path.iterdir()) == []
