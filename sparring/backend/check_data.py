"""What every backend refuses before it computes: an unknown loss, no data, a field that the loss lacks or does not read."""

from collections.abc import Sequence

from sparring.backend.datum import OPTIONAL, Datum
from sparring.backend.losses import LOSSES, Loss, read_fields, required_fields
from sparring.errors import SettingError, UnsupportedError


def check_data(data: Sequence[Datum], loss: Loss) -> None:
    """Raises `UnsupportedError` for what is no loss, `SettingError` for data that it cannot take; both name the datum."""
    if not isinstance(loss, LOSSES):
        names = ", ".join(kind.__name__ for kind in LOSSES)
        raise UnsupportedError(f"loss {loss!r}: this backend computes {names}")
    if len(data) == 0:
        raise SettingError("a call without data (an empty batch): there is nothing to compute; give at least one datum")
    required, known = required_fields(loss), read_fields(loss)
    for index, datum in enumerate(data):
        for name in OPTIONAL:
            given = getattr(datum, name) is not None
            if name in required and not given:
                raise SettingError(
                    f"datum {index} has {name}=None, which {type(loss).__name__} reads: take them from `forward` before the "
                    f"step's first update, with dataclasses.replace(datum, {name}=...)"
                )
            if given and name not in known:
                raise SettingError(
                    f"datum {index} has {name}, which {loss!r} does not read: leave it out, or take a loss that reads it"
                )
