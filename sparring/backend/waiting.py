"""How compute threads wait for each other."""

import os
from collections.abc import MutableMapping

SPINS = "10000"
"""Turns of a waiting loop, a fraction of a millisecond."""


def bound_spinning(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads spin briefly for each other, then sleep. Works before torch is first imported, and leaves what the
    user chose (`GOMP_SPINCOUNT`, `OMP_WAIT_POLICY`) alone.

    Threads that never spin decode at two thirds of the speed (a product of a decoding step takes less time than waking one);
    threads that spin without end, as is GNU OpenMP's way when they are not more than the cores, lose several times their speed
    as soon as another process wants a core. Figures: `benchmarks/README.md`.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environ.keys():
        environ["GOMP_SPINCOUNT"] = SPINS
