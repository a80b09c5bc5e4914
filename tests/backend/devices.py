"""The devices that are here: tests that take one run on each, so that the same files test a machine with CUDA."""

from __future__ import annotations

import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
