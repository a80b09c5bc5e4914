"""What every backend refuses before it computes: an unknown loss, no data, a field that the loss lacks or does not read."""

from collections.abc import Sequence
from math import inf

from sparring.backend.datum import OPTIONAL, Datum, ValueDatum
from sparring.backend.losses import LOSSES, REFERENCE, ClippedValue, Loss, read_fields, required_fields
from sparring.errors import SettingError, UnsupportedError


def check_data(data: Sequence[Datum], loss: Loss) -> None:
    """Raises `UnsupportedError` for what is no loss, `SettingError` for data that it cannot take; both name the datum."""
    if not isinstance(loss, LOSSES):
        names = ", ".join(kind.__name__ for kind in LOSSES)
        raise UnsupportedError(f"loss {loss!r}: this backend computes {names}")
    _check_kind(data, Datum, "make one of tokens, mask, logprobs, advantages and weights")
    required, known = required_fields(loss), read_fields(loss)
    for index, datum in enumerate(data):
        for name in OPTIONAL:
            given = getattr(datum, name) is not None
            if name in required and not given:
                source = "a reference's `forward`" if name in REFERENCE else "`forward` before the step's first update"
                raise SettingError(
                    f"datum {index} has {name}=None, which {type(loss).__name__} reads: take them from {source}, with "
                    f"dataclasses.replace(datum, {name}=...)"
                )
            if given and name not in known:
                raise SettingError(
                    f"datum {index} has {name}, which {loss!r} does not read: leave it out, or take a loss that reads it"
                )


def check_values(data: Sequence[ValueDatum], loss: ClippedValue | None) -> None:
    """The same for a critic, which without a loss tells values alone."""
    if not isinstance(loss, ClippedValue | None):
        raise UnsupportedError(f"loss {loss!r}: a critic computes ClippedValue")
    _check_kind(data, ValueDatum, "ValueDatum.of(datum) makes one of a policy's")
    if loss is None:
        return
    for index, datum in enumerate(data):
        if datum.returns is None:
            raise SettingError(f"datum {index} has returns=None, which {loss!r} reads: what are its values to become?")
        if datum.old_values is None and loss.clip < inf:
            raise SettingError(
                f"datum {index} has old_values=None, which {loss!r} reads: take them from `forward` before the step's first "
                "update, with dataclasses.replace(datum, old_values=...), or do not clip: ClippedValue(clip=inf)"
            )


def _check_kind(data: Sequence[object], kind: type, remedy: str) -> None:
    if len(data) == 0:
        raise SettingError("a call without data (an empty batch): there is nothing to compute; give at least one datum")
    for index, datum in enumerate(data):
        if not isinstance(datum, kind):
            raise SettingError(f"datum {index} is a {type(datum).__name__}; this model takes {kind.__name__}: {remedy}")
