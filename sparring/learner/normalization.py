"""How the tokens of an update are weighed against each other. Losses are sums over tokens; each token's term is multiplied by
its weight before the first call, so that an update in any number of calls has one gradient.

An update is what one optimizer step sees: the whole step, or one of its mini-batches. Letters: `N` its judged trajectories,
those with advantage 0 included; `T_i` the action tokens of trajectory i, over all its contexts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int32

from sparring.arrays import F64, I32
from sparring.errors import SettingError


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMean:
    """1 / (T_1 + ... + T_N): every token weighs the same, and a long trajectory more than a short one (arXiv 2503.14476,
    DAPO, which divides by the tokens of a group; here by those of the update)."""

    @property
    def divisor(self) -> str:
        """What divides, for people."""
        return "action tokens of the update"

    def token_weights(self, lengths: Int32[I32, " N"]) -> Float64[F64, " N"]:
        """The weight of each token of each trajectory."""
        return np.full(len(lengths), 1 / max(1, int(lengths.sum())))

    def resolved(self, max_tokens: int) -> TokenMean:
        """Itself: nothing is left open."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceMean:
    """1 / (N T_i): every trajectory weighs the same, its contexts together, and a token less the longer its trajectory is
    (arXiv 2402.03300, GRPO; 2507.18071, GSPO)."""

    @property
    def divisor(self) -> str:
        """What divides, for people."""
        return "trajectories of the update x action tokens of the trajectory"

    def token_weights(self, lengths: Int32[I32, " N"]) -> Float64[F64, " N"]:
        """The weight of each token of each trajectory."""
        return 1 / (np.maximum(lengths, 1).astype(np.float64) * max(1, len(lengths)))

    def resolved(self, max_tokens: int) -> SequenceMean:
        """Itself: nothing is left open."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """1 / (N L) with L = `tokens`: every token weighs the same, however long the update's trajectories are (arXiv 2503.20783,
    Dr. GRPO). None: the `max_tokens` of the policy's sampling, which is the paper's choice."""

    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None and (
            not isinstance(self.tokens, int) or isinstance(self.tokens, bool) or self.tokens < 1
        ):
            raise SettingError(
                f"Constant(tokens={self.tokens!r}): must be a whole number of tokens, at least 1, or None"
            )

    @property
    def divisor(self) -> str:
        """What divides, for people."""
        return f"trajectories of the update x {'max_tokens' if self.tokens is None else self.tokens}"

    def token_weights(self, lengths: Int32[I32, " N"]) -> Float64[F64, " N"]:
        """The weight of each token of each trajectory."""
        assert self.tokens is not None, "a run resolves it before it begins"
        return np.full(len(lengths), 1 / (max(1, len(lengths)) * self.tokens))

    def resolved(self, max_tokens: int) -> Constant:
        """With what None stands for."""
        return replace(self, tokens=max_tokens) if self.tokens is None else self


Normalization = TokenMean | SequenceMean | Constant
