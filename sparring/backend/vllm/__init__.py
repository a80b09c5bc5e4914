"""vLLM as a sampler of the local backend: its own processes draw, adapters travel to it as files, one for each version."""

from sparring.backend.vllm.sampler import VllmSampler
from sparring.backend.vllm.settings import ServedModel, VllmSettings

__all__ = ["ServedModel", "VllmSampler", "VllmSettings"]
