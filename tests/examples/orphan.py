"""A process that leaves another behind: what `examples/crash.py` must find."""

import os
import subprocess


def leaves_one() -> None:
    """Ends, in a group of its own, and something in it goes on."""
    os.setsid()
    subprocess.Popen(["sleep", "60"])
