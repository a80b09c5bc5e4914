"""The training backend: primitives, losses, samplers. Loading this loads no torch; opening `Local()` does."""

from sparring.backend.choice import BackendChoice, Local, ScriptedModels
from sparring.backend.datum import Datum, SoftTargets, ValueDatum, token_mean
from sparring.backend.losses import (
    CISPO,
    DPPO,
    DRO,
    GSPO,
    PPO,
    ClippedValue,
    CrossEntropy,
    Custom,
    DecoupledPPO,
    ImportanceSampling,
    Loss,
    Truncated,
    TruncatedImportanceSampling,
)
from sparring.backend.renderer import Renderer
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams
from sparring.backend.scripted import ScriptedBackend
from sparring.backend.training import (
    Adam,
    Backend,
    Capabilities,
    CriticClient,
    ForwardOutput,
    Lora,
    ModelInfo,
    OptimOutput,
    ReferenceClient,
    TrainingClient,
    ValueOutput,
)

__all__ = [
    "CISPO",
    "DPPO",
    "DRO",
    "GSPO",
    "PPO",
    "Adam",
    "Backend",
    "BackendChoice",
    "Capabilities",
    "ClippedValue",
    "CriticClient",
    "CrossEntropy",
    "Custom",
    "Datum",
    "DecoupledPPO",
    "ForwardOutput",
    "ImportanceSampling",
    "Local",
    "Lora",
    "Loss",
    "ModelInfo",
    "OptimOutput",
    "ReferenceClient",
    "Renderer",
    "SampledSequence",
    "SamplingClient",
    "SamplingParams",
    "ScriptedBackend",
    "ScriptedModels",
    "SoftTargets",
    "TrainingClient",
    "Truncated",
    "TruncatedImportanceSampling",
    "ValueDatum",
    "ValueOutput",
    "token_mean",
]
