"""The training backend: primitives, losses, samplers. Loading this loads no torch; opening `Local()` does."""

from sparring.backend.choice import BackendChoice, Local, ScriptedModels
from sparring.backend.datum import Datum, token_mean
from sparring.backend.losses import PPO, CrossEntropy, ImportanceSampling, Loss
from sparring.backend.renderer import Renderer
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams
from sparring.backend.scripted import ScriptedBackend
from sparring.backend.training import (
    Adam,
    Backend,
    Capabilities,
    ForwardOutput,
    Lora,
    ModelInfo,
    OptimOutput,
    TrainingClient,
)

__all__ = [
    "PPO",
    "Adam",
    "Backend",
    "BackendChoice",
    "Capabilities",
    "CrossEntropy",
    "Datum",
    "ForwardOutput",
    "ImportanceSampling",
    "Local",
    "Lora",
    "Loss",
    "ModelInfo",
    "OptimOutput",
    "Renderer",
    "SampledSequence",
    "SamplingClient",
    "SamplingParams",
    "ScriptedBackend",
    "ScriptedModels",
    "TrainingClient",
    "token_mean",
]
