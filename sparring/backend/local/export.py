"""A trained model as folders that others load: an adapter for PEFT or vLLM, or a whole model for transformers."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sparring.backend.local.base import BaseModel
from sparring.backend.local.checkpoint import adapter_files, write_folder, write_whole
from sparring.backend.local.lora import Adapter, Trained
from sparring.errors import SettingError


def export_adapter(folder: Path, adapter: Trained, *, base_name: str) -> None:
    """`adapter_config.json` and `adapter_model.safetensors` (fp32), in a new folder."""
    if not isinstance(adapter, Adapter):
        raise SettingError(f"export to {str(folder)!r}: form='adapter' of a model without one; write form='merged'")
    _refuse_existing(folder)
    write_folder(folder, adapter_files(adapter, base_name))


def export_merged(folder: Path, base: BaseModel, adapter: Trained) -> None:
    """Configuration, tokenizer and weights W + s B A in a new folder, computed in fp32 and rounded to the base's precision.

    An adapter on an output layer that is tied to the input embedding unties them: the folder then holds both.
    """
    _refuse_existing(folder)
    weights = merged_weights(base, adapter)
    config = copy.deepcopy(base.config)
    config.architectures = [type(base.model).__name__]
    config.tie_word_embeddings = base.targets[-1].name + ".weight" not in weights

    def fill(fresh: Path) -> None:
        config.save_pretrained(fresh)
        if base.model.generation_config is not None:
            base.model.generation_config.save_pretrained(fresh)
        base.tokenizer.save_pretrained(fresh)
        save_file(weights, fresh / "model.safetensors", metadata={"format": "pt"})

    write_whole(folder, fill)


@torch.no_grad()
def merged_weights(base: BaseModel, adapter: Trained) -> dict[str, Tensor]:
    """The base's tensors by name, on the CPU, with the adapter added in; a tied output layer is there only if it differs."""
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in base.model.state_dict().items()}
    output = f"{base.targets[-1].name}.weight"
    tied = base.model.get_input_embeddings().weight is base.head
    if tied and not (isinstance(adapter, Adapter) and base.targets[-1] in adapter.targets):
        del found[output]
    if not isinstance(adapter, Adapter):
        return found | {name: tensor.to(base.dtype) for name, tensor in adapter.named().items()}
    for target, a, b in zip(adapter.targets, adapter.master_a, adapter.master_b, strict=True):
        name = f"{target.name}.weight"
        found[name] = (found[name].float() + adapter.weights.scale * (b @ a).cpu()).to(base.dtype)
    return found


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise SettingError(f"export to {str(folder)!r}: it is there already; give a folder that is not")
