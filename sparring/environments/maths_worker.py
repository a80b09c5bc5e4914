"""The program of a worker that compares mathematical expressions: math-verify and sympy, in a process that may be killed.

Run as a file by `environments/workers.py`, never imported: file 0 is a socket with frames (4 bytes of length, JSON), one answer
a request. It prints nothing, and ends where the line ends. It keeps no limit of time but one of processor time, so that it ends
even where nobody is left to kill it.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import resource
import socket
import struct
import sys
from functools import lru_cache
from typing import Any, NoReturn

from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended import latex2sympy2
from math_verify import LatexExtractionConfig, parse, verify

_MEMORY = 1 << 30
_TYPICAL = (
    "\\frac{1}{2}", "-3.5", "2\\sqrt{3}", "\\frac{2\\sqrt{5}}{3}", "x^2+2x-1", "x(x+1)", "(1, 2)", "(-\\infty, 3]", "\\pi",
    "\\{1,2\\}", "\\text{B}", "y=2x+1", "x^{10}-y^{2}", "3\\%", "90^\\circ", "5 \\cdot 10^{3}", "\\left(\\frac{1}{2}\\right)",
    "e^{2}", "1,2", "\\log_2 3",
)  # fmt: skip
"""What answers look like. The parser learns its grammar from what it parses: an expression of a kind that it has seen takes a
tenth of the time."""
_EXTRACTION = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]


def main() -> NoReturn:
    """Answer until the line ends."""
    logging.disable()
    line = socket.socket(fileno=0)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prepare()
    gc.collect()
    gc.freeze()  # sympy's own objects stay; going through them again and again takes a third of the time
    gc.set_threshold(100_000, 50, 50)
    _send(line, {"ready": True})
    while True:
        message = json.loads(_exactly(line, struct.unpack(">I", _exactly(line, 4))[0]))
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = math.ceil(used.ru_utime + used.ru_stime + message["deadline"]) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        try:
            _send(line, equal(message["gold"], message["answer"], message["decimals"]))
        except (MemoryError, RecursionError) as error:
            _send(line, {"error": f"{type(error).__name__} while comparing"})


def prepare() -> None:
    """Read with the parser below, and what is loaded, compiled and learned at the first use."""
    latex2sympy2.PSParser = _Parser
    for text in _TYPICAL:
        equal("\\frac{x}{3}", text, 6)


class _Parser(latex2sympy2.PSParser):  # type: ignore[misc]  # it has no types
    """The parser of LaTeX in two stages: without the context of each rule first, as what that finds is remembered, and with it
    where that fails. What parses in the first stage parses to the same tree in the second (ANTLR's documentation of
    `PredictionMode.SLL`)."""

    def math(self) -> Any:
        self._interp.predictionMode = PredictionMode.SLL
        try:
            return super().math()
        except Exception:  # noqa: BLE001 - it is all that math-verify's parser raises for what it cannot read
            self.reset()
            self._interp.predictionMode = PredictionMode.LL
            return super().math()


def equal(gold: str, answer: str, decimals: int) -> dict[str, Any]:
    """Whether they are; an answer that cannot be read is not. A gold that cannot be read is an error."""
    expected = _gold(gold)
    if not expected:
        return {"error": f"the gold answer {gold[:100]!r} cannot be read as mathematics"}
    found = _parsed(answer)
    return {"equal": bool(found and verify(expected, found, float_rounding=decimals, timeout_seconds=0))}


@lru_cache(maxsize=1024)
def _gold(text: str) -> list[Any]:
    return _parsed(text)


def _parsed(text: str) -> list[Any]:
    parsed: list[Any] = parse(
        f"\\boxed{{{text}}}",
        extraction_config=_EXTRACTION,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=0,
    )
    return parsed


def _send(line: socket.socket, message: dict[str, Any]) -> None:
    content = json.dumps(message).encode()
    line.sendall(struct.pack(">I", len(content)) + content)


def _exactly(line: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = line.recv(length - len(parts))
        if not part:
            os._exit(0)
        parts += part
    return bytes(parts)


if __name__ == "__main__":
    sys.setrecursionlimit(2000)
    main()
