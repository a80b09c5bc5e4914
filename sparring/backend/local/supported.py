"""Which architectures are computed exactly, and the refusal of the others, by name, when a model is loaded.

Exact are decoders of linear layers with causal attention, over the whole context or a sliding window of it, and a linear head:
Llama, Mistral, Qwen2, Qwen3, SmolLM, Gemma, Gemma 3 (its text model), and Gemma 2 without soft-capping. The tests compare
each with transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from transformers import PreTrainedConfig

from sparring.errors import UnsupportedError

Part = Literal["attention", "mlp", "unembedding"]

PARTS: Mapping[str, Part] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"), "attention"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj", "gate_up_proj"), "mlp"),
}
"""The linear layers that adapters apply to, and what each belongs to."""

_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Of one module, the linear layers that read the same, in their order."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "use_bidirectional_attention": (None, False),
}
"""Settings that change scores or logits where no other part of this backend looks, and the values that do nothing."""


def refuse_unsupported(config: PreTrainedConfig, name: str) -> None:
    """Raise `UnsupportedError` naming the setting of a model that would not be computed as it should be."""
    if config.get_text_config() is not config:
        raise UnsupportedError(f"model {name!r}: {config.model_type!r} is more than a text model; take a text-only one")
    settings = config.to_dict()
    for key, neutral in _NEUTRAL.items():
        value = settings.get(key)
        if value not in neutral:
            raise UnsupportedError(f"model {name!r}: {key}={value!r} is not computed here; take a model without it")


def layer_windows(config: PreTrainedConfig, name: str) -> tuple[int | None, ...]:
    """How many tokens the attention of each layer looks back on, its own included; None where it sees all."""
    settings = config.to_dict()
    count, window = settings["num_hidden_layers"], settings.get("sliding_window")
    if not settings.get("use_sliding_window", True):
        window = None
    kinds = settings.get("layer_types") or ["full_attention" if window is None else "sliding_attention"] * count
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UnsupportedError(f"model {name!r}: layers of type {unknown!r}; known are full and sliding attention")
    return tuple(None if kind == "full_attention" else window for kind in kinds)


def part_of(layer: str, model: str) -> Part:
    """What a linear layer belongs to, from its module name, as transformers' decoders have them."""
    part = PARTS.get(layer.rpartition(".")[2])
    if part is None:
        raise UnsupportedError(f"model {model!r}: its layer {layer!r} is none of {', '.join(PARTS)}")
    return part


def same_input(layers: Sequence[str]) -> list[tuple[int, ...]]:
    """The places of these layers (module names, in the model's order), those that read the same input in one set."""
    place = {name: at for at, name in enumerate(layers)}
    modules = dict.fromkeys(name.rpartition(".")[0] for name in layers)
    sets = ([f"{module}.{name}" for name in names] for module in modules for names in _SAME_INPUT)
    found = [tuple(place.pop(name) for name in names) for names in sets if place.keys() >= set(names)]
    return sorted([*found, *((at,) for at in place.values())])
