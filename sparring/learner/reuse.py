"""Off-policy reuse: training on what was trained on before, in places beyond the fresh ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparring.errors import SettingError
from sparring.learner.step import Priority, mean_advantage
from sparring.rollout.buffer import ReuseRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """Each step also trains on up to `units` units that were trained before, drawn without replacement from those that
    have uses left and are young enough; the losses correct for the distribution that they were sampled from.

    units     places in a step, beyond its `groups_per_step` fresh ones
    how       "uniform"; "prioritized", in proportion to the mean |advantage| over a unit's action tokens as of its last use
              (arXiv 1511.05952 draws by |error| likewise; the bias that this brings is not corrected); or a function of one's
              own, (unit, that mean) -> a weight of at least 0
    max_uses  uses of one unit in all, the first included
    max_age   how many versions older than the weights it trains a token may be on a further use, as `max_staleness` is on
              the first
    """

    units: int
    how: Literal["uniform", "prioritized"] | Priority = "uniform"
    max_uses: int = 2
    max_age: int = 4

    def __post_init__(self) -> None:
        for name, least, why in (
            ("units", 1, ""),
            ("max_uses", 2, ", as the first use counts"),
            ("max_age", 1, ", as a unit is older on its second use than on its first"),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SettingError(f"Reuse({name}={value!r}): must be a whole number, at least {least}{why}")
        if not (callable(self.how) or self.how in ("uniform", "prioritized")):
            raise SettingError(
                f"Reuse(how={self.how!r}): must be 'uniform', 'prioritized' or a function (unit, |advantage|) -> weight"
            )

    @property
    def rule(self) -> ReuseRule:
        """What the coordinator decides by."""
        weighted = self.how != "uniform"
        return ReuseRule(units=self.units, weighted=weighted, max_uses=self.max_uses, max_age=self.max_age)

    @property
    def priority(self) -> Priority | None:
        """The weight of a unit; None where each is drawn alike."""
        if callable(self.how):
            return self.how
        return mean_advantage if self.how == "prioritized" else None


def check_reuse(reuse: object, *, max_staleness: int) -> None:
    """Raises `SettingError` for what is no reuse, and for an age that forbids on later uses what the first allows."""
    if reuse is None:
        return
    if not isinstance(reuse, Reuse):
        raise SettingError(f"reuse={reuse!r}: must be None or Reuse(units=...)")
    if reuse.max_age < max_staleness:
        raise SettingError(
            f"reuse={reuse!r}: with max_staleness={max_staleness} a unit may be older than max_age on its first use; "
            f"make max_age at least {max_staleness}, better more"
        )
