"""Losses that are functions of the user's own: called with all the call's log-probs, asked for d loss / d logprob."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring.arrays import F32
from sparring.backend.datum import Datum
from sparring.backend.local.measures import measures
from sparring.backend.local.objectives import Objective
from sparring.backend.local.packing import MicroBatch
from sparring.backend.losses import Custom
from sparring.errors import BackendError, NonFinite, SettingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """`slopes[i]` f32[T_i] is d loss / d logprobs of datum i, 0 where not scored; `metrics` are the function's and ours."""

    slopes: list[F32]
    metrics: dict[str, float]


def decide(loss: Custom, data: Sequence[Datum], logprobs: Sequence[F32]) -> Decided:
    """Call the function. Raises `BackendError` for what it raises, `SettingError` for what it must not return, `NonFinite`."""
    masks = [torch.from_numpy(datum.mask) for datum in data]
    leaves = [torch.from_numpy(lp)[mask].requires_grad_(True) for lp, mask in zip(logprobs, masks, strict=True)]
    with torch.enable_grad():
        given = [torch.zeros(len(m)).masked_scatter(m, leaf) for m, leaf in zip(masks, leaves, strict=True)]
        value, metrics = _called(loss, data, given)
        found = torch.autograd.grad(value, leaves, allow_unused=True)
    slopes: list[F32] = []
    for index, (mask, slope) in enumerate(zip(masks, found, strict=True)):
        whole = np.zeros(len(mask), np.float32)
        if slope is not None:
            if not bool(torch.isfinite(slope).all()):
                raise NonFinite(
                    f"the custom loss's gradient with respect to the log-probs of datum {index} is not finite"
                )
            whole[mask.numpy()] = slope.numpy()
        slopes.append(whole)
    q = torch.from_numpy(np.concatenate([datum.logprobs[datum.mask] for datum in data]))
    own = measures(loss, torch.cat(leaves), q, Objective(loss=value.detach())).fetched()
    return Decided(slopes=slopes, metrics=own | _checked_metrics(metrics, own))


def slopes_at(slopes: Sequence[F32], batch: MicroBatch) -> Tensor:
    """The slopes of a micro-batch's scored tokens, f32[N]."""
    places = zip(batch.datum.tolist(), batch.token.tolist(), strict=True)
    return torch.tensor([slopes[datum][token] for datum, token in places], dtype=torch.float32)


def _called(loss: Custom, data: Sequence[Datum], given: Sequence[Tensor]) -> tuple[Tensor, Mapping[str, Any]]:
    try:
        returned: Any = loss.function(data, given)
    except Exception as error:  # the user's code: its failure is said with its name
        raise BackendError(f"the custom loss {loss.function!r} raised {error!r}") from error
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[1], Mapping):
        raise SettingError(
            f"the custom loss {loss.function!r} returned {returned!r}: must be (loss, metrics), metrics a mapping"
        )
    value = returned[0]
    if not isinstance(value, Tensor) or value.ndim != 0:
        raise SettingError(
            f"the custom loss {loss.function!r} returned {value!r} as its loss: must be a tensor without dimensions"
        )
    if not value.requires_grad:
        raise SettingError(
            f"the custom loss {loss.function!r} does not depend on the log-probs: they are its second argument, "
            "and .item(), .detach() or .numpy() cut the way back to them"
        )
    if not math.isfinite(value.item()):
        raise NonFinite(f"the custom loss {loss.function!r} is {value.item()!r}")
    return value, returned[1]


def _checked_metrics(metrics: Mapping[str, Any], own: Mapping[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if name in own:
            raise SettingError(f"the custom loss's metric {name!r} has the name of one of the backend's: take another")
        try:
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise SettingError(f"the custom loss's metric {name!r} is {value!r}: must be a number") from error
    return found
