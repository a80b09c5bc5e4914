"""What a setting may be: a whole number, a number, the name of a folder."""

from __future__ import annotations

from math import isfinite


def folder_name(name: object) -> bool:
    """Whether a text names one folder that is not hidden."""
    return isinstance(name, str) and bool(name) and not name.startswith(".") and not set(name) & set("/\\\0")


def whole(value: object) -> bool:
    """Whether it is a whole number; True is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def finite(value: object) -> bool:
    """Whether it is a finite number; True is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
