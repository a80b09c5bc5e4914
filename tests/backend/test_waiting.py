"""Compute threads spin for a bounded time, unless the user chose otherwise; said before torch is there to read it."""

import subprocess
import sys

import pytest

from sparring.backend.waiting import SPINS, bound_spinning


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": SPINS}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_spinning_is_bounded_unless_the_user_chose(before: dict[str, str], after: dict[str, str]) -> None:
    bound_spinning(before)
    assert before == after


def test_a_backend_says_it_before_torch_is_there() -> None:
    """In a process of its own: nothing that a run loads before it opens its backend may load torch."""
    code = (
        "import os, sys, sparring\n"
        "os.environ.pop('GOMP_SPINCOUNT', None), os.environ.pop('OMP_WAIT_POLICY', None)\n"
        "assert 'torch' not in sys.modules\n"
        "sparring.Local().open(deterministic=False)\n"
        f"assert os.environ['GOMP_SPINCOUNT'] == {SPINS!r}\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
