"""vLLM as a sampler of the local backend: its own processes draw, weights travel to them as files, one folder a version."""

from sparring.backend.vllm.sampler import Probe, VllmSampler
from sparring.backend.vllm.settings import ServedModel, VllmSettings

__all__ = ["Probe", "ServedModel", "VllmSampler", "VllmSettings"]
