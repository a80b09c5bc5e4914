"""Direct preference optimisation (arXiv 2305.18290): a policy learns which of two replies is preferred, without a reward model.

Letter: `N` pairs. Log-probs are sums over the tokens of a reply.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from jaxtyping import Float64

from sparring.arrays import F64
from sparring.errors import SettingError


@dataclass(frozen=True, slots=True, kw_only=True)
class DPO:
    """The mean over pairs of -(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m), m = (lp - ref) of the chosen reply - the
    same of the rejected one (eq. 7; with the label smoothing e of https://ericmitchell.ai/cdpo.pdf, 0 in the paper).

    beta       how near it stays to the reference: what the policy began as
    smoothing  e: the share of pairs that are thought to be the wrong way round

    The gradient with respect to each token's log-prob is known in closed form, so that one pass asks for log-probs and a second
    one takes cross-entropy with that as the weight of each token.
    """

    beta: float = 0.1
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.beta, bool) or not (isinstance(self.beta, int | float) and 0 < self.beta < inf):
            raise SettingError(f"DPO(beta={self.beta!r}): must be a finite number above 0, as in beta=0.1")
        if isinstance(self.smoothing, bool) or not (
            isinstance(self.smoothing, int | float) and 0 <= self.smoothing < 0.5
        ):
            raise SettingError(
                f"DPO(smoothing={self.smoothing!r}): must be at least 0 and below 0.5, where nothing is left to learn"
            )

    @property
    def width(self) -> int:
        """Examples of an item: the chosen and the rejected."""
        return 2

    def margins(self, policy: Float64[F64, "N 2"], reference: Float64[F64, "N 2"]) -> Float64[F64, " N"]:
        """m of each pair, [chosen, rejected]."""
        gained = policy - reference
        return gained[:, 0] - gained[:, 1]

    def losses(self, margins: Float64[F64, " N"]) -> Float64[F64, " N"]:
        """The loss of each pair."""
        return (1 - self.smoothing) * np.logaddexp(0, -self.beta * margins) + self.smoothing * np.logaddexp(
            0, self.beta * margins
        )

    def slopes(self, margins: Float64[F64, " N"]) -> Float64[F64, " N"]:
        """The derivative of each pair's loss with respect to m, which is that for each token's log-prob of the chosen reply,
        and minus that of the rejected one."""
        wrong = np.exp(-np.logaddexp(0, self.beta * margins))  # sigmoid(-beta m)
        return -self.beta * ((1 - self.smoothing) * wrong - self.smoothing * (1 - wrong))
