"""Advantages: how much better a trajectory did than those it may fairly be compared with.

An estimator is a pure function of a `Comparable` set and a state, and returns the advantages and the next state. The
state is JSON data and is committed with the step, so that a resumed run continues with the same baselines. Letters: `N`
trajectories, `T` tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import isfunction
from math import fsum, sqrt
from typing import Any, Protocol, overload, runtime_checkable

import msgspec
import numpy as np
from jaxtyping import Float32, Int32

from sparring.arrays import F32, I32
from sparring.environments.plain import canonical
from sparring.errors import SettingError

State = Mapping[str, Any]
Advantage = F32 | list[F32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparable:
    """Judged trajectories of one task, seat and label, over a group or within one episode. Its arrays are read-only.

    A fork counts as a trajectory of its seat: with a label of its own it is compared with the forks of that label,
    without one also with the seat that it was made of.

    environment  its name: other settings of one environment share it
    rewards      f32[N]     returns, penalties included
    lengths      i32[N]     action tokens
    turn_rewards N x f32[turns]
    turns        N x i32[T] the turn of each action token
    episodes     i32[N]     member numbers within the group
    penalties    N x f32[T] what is part of the returns, token by token: a penalty for leaving a reference; () without
    values       N x f32[T] a critic's value of what precedes each action token; () without
    players      {seat: who plays it}: a policy by its name, another player as the line-up names it, a league's with the
                 version that was drawn
    """

    environment: str
    seat: str
    label: str
    rewards: Float32[F32, " N"]
    lengths: Int32[I32, " N"]
    turn_rewards: tuple[Float32[F32, " _"], ...]
    turns: tuple[Int32[I32, " _"], ...]
    episodes: Int32[I32, " N"]
    penalties: tuple[Float32[F32, " _"], ...] = ()
    values: tuple[Float32[F32, " _"], ...] = ()
    players: Mapping[str, str] = field(default_factory=dict[str, str])

    def __len__(self) -> int:
        return len(self.rewards)


@runtime_checkable
class Advantages(Protocol):
    """(Comparable, State) -> (f32[N], or a list of one f32[T] for each trajectory; State). `minimum`: the smallest N it
    makes sense for; the trajectories of smaller sets get advantage 0, and the sets are counted.

    Within a step the sets come in the order in which their groups were admitted, the next one with the state that the
    last one returned. The state is JSON data: what comes back after a step is as decoded from the journal (a tuple as a
    list).
    """

    @property
    def name(self) -> str: ...
    @property
    def minimum(self) -> int: ...
    def __call__(self, group: Comparable, state: State) -> tuple[Advantage, State]: ...


StatelessFunction = Callable[[Comparable], Advantage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stateless:
    """An estimator lifted from a plain function by `@advantages`."""

    function: StatelessFunction
    minimum: int = 2

    @property
    def name(self) -> str:
        function = self.function.func if isinstance(self.function, partial) else self.function
        return function.__name__ if isfunction(function) else type(function).__name__

    def __call__(self, group: Comparable, state: State) -> tuple[Any, State]:
        return self.function(group), state  # `estimate` checks what it returned


@overload
def advantages(function: StatelessFunction, /) -> Stateless: ...
@overload
def advantages(*, minimum: int = 2) -> Callable[[StatelessFunction], Stateless]: ...


def advantages(
    function: StatelessFunction | None = None, /, *, minimum: int = 2
) -> Stateless | Callable[[StatelessFunction], Stateless]:
    """Make an estimator of a function `Comparable -> f32[N]`; the values are spread over each trajectory's action
    tokens.

    `@advantages(minimum=1)` for one that makes sense of a single trajectory.
    """
    if not isinstance(minimum, int) or minimum < 1:
        raise SettingError(f"advantages(minimum={minimum!r}): the fewest trajectories it makes sense for, at least 1")

    def lifted(one: StatelessFunction) -> Stateless:
        if not callable(one):
            raise SettingError(f"advantages({one!r}): give it a function of a Comparable, or decorate one")
        return Stateless(function=one, minimum=minimum)

    return lifted if function is None else lifted(function)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMean:
    """A_i = r_i - mean(r), over N >= 2 (arXiv 2503.20783, Dr. GRPO). With `deviation`, A_i = (r_i - mean(r)) / std(r),
    with the deviation of the N rewards themselves (divided by N, not N - 1), and 0 where they are all equal (arXiv
    2402.03300, GRPO)."""

    deviation: bool = False

    @property
    def name(self) -> str:
        return "group mean and deviation" if self.deviation else "group mean"

    @property
    def minimum(self) -> int:
        return 2

    def __call__(self, group: Comparable, state: State) -> tuple[Float32[F32, " N"], State]:
        rewards = group.rewards.astype(np.float64)
        centred = rewards - fsum(rewards) / len(rewards)
        if self.deviation:
            spread = sqrt(fsum(centred**2) / len(rewards))
            centred = centred / spread if spread > 0 else np.zeros_like(centred)
        return centred.astype(np.float32), state


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleBaseline:
    """A = r - b, with b a running mean for each environment, seat and label (role-conditioned advantage estimation,
    arXiv 2506.24119, SPIRAL): b starts at 0, is read, and only then moves: b = decay * b + (1 - decay) * r.

    Each trajectory moves the baseline of the next, so that the advantages depend on the order, which is that of
    admission.

    given  seats: b is kept for each player there too, by its name (`Comparable.players`), as in ("judge",); a seat that an
           environment does not have adds nothing
    """

    decay: float = 0.95
    given: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise SettingError(f"rae(decay={self.decay!r}): must be at least 0 and less than 1")
        names = isinstance(self.given, tuple) and all(isinstance(seat, str) for seat in self.given)
        if not names or len(set(self.given)) < len(self.given):
            raise SettingError(
                f"rae(given={self.given!r}): must be a seat, or a tuple of different ones, as in ('judge',)"
            )

    @property
    def name(self) -> str:
        given = f", given {' and '.join(self.given)}" if self.given else ""
        return f"role baseline, decay {self.decay}{given}"

    @property
    def minimum(self) -> int:
        return 1

    def __call__(self, group: Comparable, state: State) -> tuple[Float32[F32, " N"], State]:
        given = "".join(f"/{seat}={group.players[seat]}" for seat in self.given if seat in group.players)
        key = f"{group.environment}/{group.seat}/{group.label}{given}"
        baseline = float(state.get(key, 0.0))
        values = np.empty(len(group), np.float32)
        for index, reward in enumerate(group.rewards.tolist()):
            values[index] = reward - baseline
            baseline = self.decay * baseline + (1 - self.decay) * reward
        return values, {**state, key: baseline}


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveOneOut:
    """A_i = r_i - mean of the other rewards = N / (N - 1) (r_i - mean(r)), over N >= 2 (arXiv 2402.14740, RLOO): each
    baseline is independent of the trajectory that it is for, so that the gradient is unbiased."""

    @property
    def name(self) -> str:
        return "leave-one-out mean"

    @property
    def minimum(self) -> int:
        return 2

    def __call__(self, group: Comparable, state: State) -> tuple[Float32[F32, " N"], State]:
        rewards = group.rewards.astype(np.float64)
        count = len(rewards)
        centred = rewards - fsum(rewards) / count
        return (centred * (count / (count - 1))).astype(np.float32), state


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What an estimator returned, as one f32[T] for each trajectory, and its next state."""

    values: tuple[Float32[F32, " _"], ...]
    state: State


def estimate(estimator: Advantages, group: Comparable, state: State) -> Checked:
    """Run an estimator and check what it returns. Raises `SettingError` for a wrong shape or a value that is not
    finite."""
    label = f", label {group.label!r}" if group.label else ""
    what = f"advantages {estimator.name!r}, {len(group)} trajectories of seat {group.seat!r}{label}: it returned"
    answer: object = estimator(group, state)
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping)):
        raise SettingError(
            f"{what} {answer!r}: must be (advantages, state), the state a mapping; "
            f"@advantages is for functions without one"
        )
    values = _rows(what, answer[0], group.lengths)
    for row in values:
        if not np.isfinite(row).all():
            bad = float(row[~np.isfinite(row)][0])
            raise SettingError(
                f"{what} {bad!r}: must be finite; rewards {group.rewards.tolist()}, lengths {group.lengths.tolist()}"
            )
    return Checked(values=values, state=answer[1])


def plain_state(estimator: Advantages, state: State) -> dict[str, Any]:
    """A copy of an estimator's state as the journal would give it back. Raises `SettingError` for what is not JSON
    data."""
    try:
        plain: dict[str, Any] = json.loads(canonical(state))
        msgspec.msgpack.encode(plain)  # the journal holds integers of 64 bits
    except (ValueError, OverflowError) as error:
        remedy = "use text, lists, float(...) and int(...) of at most 64 bits"
        raise SettingError(f"advantages {estimator.name!r}: its state must be JSON data ({error}); {remedy}") from error
    return plain


def _rows(what: str, returned: object, lengths: Int32[I32, " N"]) -> tuple[Float32[F32, " _"], ...]:
    """One value for each token of each trajectory: given as such, or one for all tokens of a trajectory."""
    if isinstance(returned, list) and any(np.ndim(row) > 0 for row in returned):
        rows = tuple(_array(what, row) for row in returned)
        shapes = [row.shape for row in rows]
        if shapes != [(int(length),) for length in lengths]:
            raise SettingError(
                f"{what} a list of shapes {shapes} for lengths {lengths.tolist()}: "
                f"must be one f32[T] for each, T its length"
            )
        return rows
    flat = _array(what, returned)
    if flat.shape != lengths.shape:
        raise SettingError(f"{what} the shape {flat.shape}: must be {lengths.shape}, one value for each trajectory")
    return tuple(np.full(int(length), value, np.float32) for value, length in zip(flat, lengths, strict=True))


def _array(what: str, value: object) -> F32:
    wanted = "must be numbers, f32[N] or a list of f32[T]"
    if value is None:
        raise SettingError(f"{what} None: {wanted}; is a return missing?")
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as that
            return np.array(value, np.float32)
    except (TypeError, ValueError) as error:
        raise SettingError(f"{what} {value!r}: {wanted}") from error
