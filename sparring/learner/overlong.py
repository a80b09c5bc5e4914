"""Shaping of rewards by length: replies that near their limit are worth less, before they are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

from sparring.errors import SettingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlong:
    """Soft overlong punishment (arXiv 2503.14476, DAPO, eq. 13): a trajectory whose longest reply has L tokens gets
    0 for L <= limit - cache, (limit - cache - L) / cache up to the limit, and -1 beyond it, on top of its reward.

    limit  None: the `max_tokens` of the policy's sampling
    share  cache / limit; the paper has 4096 of 20480

    Differs from the paper where a trajectory has several replies: each is bounded by max_tokens, so the longest counts.
    """

    limit: int | None = None
    share: float = 0.2

    def __post_init__(self) -> None:
        if self.limit is not None and (
            not isinstance(self.limit, int) or isinstance(self.limit, bool) or self.limit < 1
        ):
            raise SettingError(f"Overlong(limit={self.limit!r}): must be a whole number of tokens, at least 1, or None")
        if not (isinstance(self.share, int | float) and isfinite(self.share) and 0 < self.share <= 1):
            raise SettingError(f"Overlong(share={self.share!r}): a share of the limit, above 0 and at most 1 (0.2)")

    def reward(self, longest: int) -> float:
        """What is added to the reward of a trajectory whose longest reply has so many tokens."""
        assert self.limit is not None, "a run resolves it before it begins"
        cache = self.share * self.limit
        return -min(1.0, max(0.0, (longest - (self.limit - cache)) / cache))

    def resolved(self, max_tokens: int) -> Overlong:
        """With what None stands for. Raises `SettingError` for a limit that no reply reaches."""
        if self.limit is not None and self.limit > max_tokens:
            raise SettingError(
                f"Overlong(limit={self.limit!r}): no reply is longer than sampling.max_tokens={max_tokens!r}; "
                f"leave the limit out, or raise max_tokens"
            )
        return replace(self, limit=max_tokens) if self.limit is None else self
