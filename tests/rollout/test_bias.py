"""The drop-bias table: counts by length, reward and task, and what a person reads of it."""

from sparring.rollout.bias import OTHER, DropBias


def test_lengths_fall_into_powers_of_two() -> None:
    bias = DropBias()
    for tokens in (0, 1, 2, 3, 4, 7, 8, 1023, 1024):
        bias.add("alice", "one", "late", tokens=tokens, reward=None, task=(0, 3))
    (tally,) = bias.table().values()
    assert tally.lengths == {0: 1, 1: 1, 2: 2, 4: 2, 8: 1, 512: 1, 1024: 1}
    assert (tally.count, tally.tokens, tally.judged, tally.mean_reward) == (9, 2072, 0, None)
    assert tally.tasks == {(0, 3): 9}


def test_rewards_are_counted_by_value_and_never_without_bound() -> None:
    bias = DropBias()
    for reward in (0.0, 1.0, 1.0, 0.33333):
        bias.add("alice", "one", "filter", tokens=1, reward=reward, task=(0, 0))
    (tally,) = bias.table().values()
    assert tally.rewards == {"0": 1, "1": 2, "0.333": 1}
    assert tally.mean_reward is not None and abs(tally.mean_reward - 2.33333 / 4) < 1e-12
    for number in range(1000):
        bias.add("alice", "one", "filter", tokens=1, reward=float(number), task=(0, 0))
    assert len(tally.rewards) == 65 and tally.rewards[OTHER] > 900 and sum(tally.rewards.values()) == 1004


def test_what_a_person_reads() -> None:
    """Seats that lost nothing are left out."""
    bias = DropBias()
    bias.add("bob", "two", "trained", tokens=5, reward=1.0, task=(0, 0))
    for reward, tokens in ((1.0, 10), (0.0, 20)):
        bias.add("alice", "one", "trained", tokens=tokens, reward=reward, task=(0, tokens))
    assert bias.lines == []
    bias.add("alice", "one", "late", tokens=400, reward=None, task=(1, 9))
    assert bias.lines == [
        "alice in seat one: dropped (late) 1, of 1 task, mean length 400.0",
        "alice in seat one: trained 2, of 2 tasks, mean length 15.0, mean reward 0.5",
    ]
