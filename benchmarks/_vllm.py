"""vLLM through this library's client, against the same engine driven directly: the rows; `_vllm_pairs.py` measures, in the
environment that has vLLM."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np

from benchmarks._rows import Row, Settings, at_least

PYTHON = Path(".venv-vllm/bin/python")


def vllm_rows(settings: Settings) -> list[Row]:
    """Tokens per second of both, and the median of the pairs' ratios."""
    if not PYTHON.exists():
        return [Row(name="vLLM", figure="no .venv-vllm: run make test-vllm once", target="installed", met=False)]
    command = [str(PYTHON), "-m", "benchmarks._vllm_pairs", settings.model, settings.dtype, str(settings.threads)]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    tokens, pairs = said["tokens"], np.array(said["pairs"])
    direct, client = np.median(pairs, axis=0)
    return [
        Row(name="vLLM driven directly, tok/s", figure=f"{tokens / direct:.0f}"),
        Row(name="vLLM through the client, tok/s", figure=f"{tokens / client:.0f}"),
        at_least(
            f"vLLM, client / direct, median of {len(pairs)} pairs", float(np.median(pairs[:, 0] / pairs[:, 1])), 0.9
        ),
    ]
