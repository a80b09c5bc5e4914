"""`sparring play` in a pseudo-terminal: a person takes a seat of Kuhn poker."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

KUHN = Path(__file__).parents[2] / "examples" / "kuhn.py"


def played(*answers: str) -> str:
    """All that the terminal shows while each question is answered by the next of these."""
    ours, theirs = pty.openpty()
    run = "import sys; from sparring.cli.main import main; sys.exit(main())"
    words = [sys.executable, "-c", run, "play", str(KUHN), "--seat", "second=human", "--task", "1"]
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown, left = b"", list(answers)
        while True:
            try:
                more = os.read(ours, 4096)
            except OSError:  # the terminal is closed: the program has ended
                break
            shown += more
            if shown.endswith(b"> ") and left:
                os.write(ours, f"{left.pop(0)}\n".encode())
        assert process.wait(30) == 0, shown
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def test_a_person_plays_the_second_seat() -> None:
    shown = played(*["raise", "raise"])
    assert "[second] Kuhn poker with cards J, Q, K. Your card is K." in shown
    assert "Reply with exactly one of: " in shown and shown.count("\n> ") == 2, (
        "a second question after an illegal move"
    )
    assert "reward of first: 1\nreward of second: -1" in shown and "illegal: 2" in shown
