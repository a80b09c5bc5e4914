"""A frozen causal language model, loaded once and shared by every adapter that is trained or sampled on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from sparring.backend.local import kernel_attention, row_attention
from sparring.backend.local.attention_layer import install_attention
from sparring.backend.local.kernel_attention import KernelBias
from sparring.backend.local.linear import Joint, LoraLinear
from sparring.backend.local.lora import AdapterCall, Target
from sparring.backend.local.norms import install_norms
from sparring.backend.local.packing import Rows
from sparring.backend.local.plugged import plugged
from sparring.backend.local.row_attention import RowBias
from sparring.backend.local.supported import layer_windows, part_of, refuse_unsupported, same_input
from sparring.errors import SettingError

_HASHED = (".safetensors", ".json", ".jinja", ".model", ".txt")


class BaseModel:
    """Base weights with `LoraLinear` in place of every linear layer of attention and MLP.

    body       the transformer without its head: (input_ids i64[B, T], ...) -> last_hidden_state [B, T, D]
    head       the output embedding, [V, D], frozen
    call       which adapters the rows of a forward pass go through; set it round every call of `body`
    targets    the layers that adapters may apply to; the last is the output layer, which `Readout` takes care of
    windows    what the layers' attention looks back on: a number of tokens, or None for all; each kind once

    Raises `UnsupportedError` for an architecture that is not computed exactly here; see `supported`.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, fingerprint: str
    ) -> None:
        self.name, self.fingerprint, self.tokenizer = name, fingerprint, tokenizer
        self.model = model.eval().requires_grad_(False)
        self.config = model.config
        self.call = AdapterCall()
        body = model.get_decoder()
        assert isinstance(body, nn.Module)
        self.body: nn.Module = body
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None:
            kind = type(head).__name__
            raise SettingError(f"model {name!r}: its output layer is {kind}; one linear layer without bias is needed")
        refuse_unsupported(self.config, name)
        self.windows: tuple[int | None, ...] = tuple(dict.fromkeys(layer_windows(self.config, name)))
        self.head: Tensor = head.weight
        install_norms(self.model)
        install_attention(self.model)
        self.targets: tuple[Target, ...] = (*self._install(), self._output_target(head))
        self.named_parameters: dict[str, nn.Parameter] = dict(self.model.named_parameters())
        self.call.parameters = tuple(self.named_parameters.values())

    @property
    def context_length(self) -> int:
        """The longest sequence the model takes, in tokens."""
        return int(self.config.max_position_embeddings)

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        return int(self.head.shape[0])

    @property
    def hidden(self) -> int:
        """The width of the hidden state, D."""
        return int(self.head.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self.head.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.device

    @property
    def parameters(self) -> int:
        """How many numbers the frozen base has."""
        return sum(p.numel() for p in self.model.parameters())

    def hidden_states(self, batch: Rows, *, train: bool) -> Float[Tensor, "R L D"]:
        """The last hidden states of a pass; inside `with call.rows(...)`. `train` lets gradients flow to adapters."""
        tokens, positions, end = (
            torch.from_numpy(one).to(self.device) for one in (batch.tokens, batch.positions, batch.end)
        )
        embedded = self.model.get_input_embeddings()(tokens)
        if train:
            embedded.requires_grad_(True)  # the embedding is frozen: this is where the graph begins
        length = tokens.shape[1]
        exact = self.device.type == "cpu" or self.dtype == torch.float32
        name = row_attention.NAME if exact and length <= row_attention.LONGEST else kernel_attention.NAME
        if batch.plain:  # one row stands for all
            end, places = torch.full_like(end[:1], length), torch.arange(length, device=self.device)[None]
        else:
            places = positions
        with plugged(self.config, name):
            output = self.body(
                inputs_embeds=embedded,
                position_ids=positions,
                attention_mask=embedded.new_zeros((1, 1, 1, 1)),  # four dimensions: transformers makes none of its own
                sparring_bias={w: self._bias(name, end, places, w, plain=batch.plain) for w in self.windows},
                use_cache=False,
            )
        return output.last_hidden_state  # type: ignore[no-any-return]

    def _bias(
        self, name: str, end: Tensor, positions: Tensor, window: int | None, *, plain: bool
    ) -> RowBias | KernelBias:
        """What the attention of this name adds to the scores of layers with this window."""
        if name == row_attention.NAME:
            return row_attention.row_bias(seen_by(end, positions, window), self.config, self.dtype)
        if plain and (window is None or window >= end.shape[1]):
            return None
        return kernel_attention.kernel_bias(seen_by(end, positions, window), self.dtype)

    def _install(self) -> tuple[Target, ...]:
        """Replace the linear layers and return them as targets."""
        prefix = next(name for name, module in self.model.named_modules() if module is self.body)
        linear = [(name, module) for name, module in self.body.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise SettingError(f"model {self.name!r}: {type(self.model).__name__} has no linear layers to adapt")
        targets = tuple(
            Target(
                name=f"{prefix}.{name}",
                inputs=module.in_features,
                outputs=module.out_features,
                part=part_of(name, self.name),
            )
            for name, module in linear
        )
        layers = [LoraLinear(module, self.call, index) for index, (_, module) in enumerate(linear)]
        for (name, _), layer in zip(linear, layers, strict=True):
            parent, _, child = name.rpartition(".")
            self.body.get_submodule(parent).register_module(child, layer)
        for places in same_input([name for name, _ in linear]):
            Joint([layers[place] for place in places], self.call, first=places[0])
        return targets

    def _output_target(self, head: nn.Linear) -> Target:
        name = next(name for name, module in self.model.named_modules() if module is head)
        return Target(name=name, inputs=head.in_features, outputs=head.out_features, part="unembedding")


def seen_by(end: Int[Tensor, "R L"], positions: Int[Tensor, "R L"], window: int | None) -> Bool[Tensor, "R L L"]:
    """Who (dimension 1) sees whom (2): each token those before it whose `end` it does not reach, `window` of them at most."""
    place = torch.arange(end.shape[1], device=end.device)
    seen = (place[:, None] >= place) & (place[:, None] < end[:, None, :])
    return seen if window is None else seen & (positions[:, :, None] - positions[:, None, :] < window)


def load_base(folder: Path, *, dtype: torch.dtype, device: torch.device) -> BaseModel:
    """Load a model folder (config, safetensors, tokenizer with a chat template). Raises `SettingError` for a folder without."""
    missing = [what for what in ("config.json", "*.safetensors", "tokenizer*") if not any(folder.glob(what))]
    if missing:
        raise SettingError(
            f"model folder {str(folder)!r} has no {', '.join(missing)}: a transformers folder has them all"
        )
    with _without_progress_bar():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, attn_implementation="sdpa", local_files_only=True, use_safetensors=True
        )
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    model = loaded.to(device)
    assert isinstance(model, PreTrainedModel)
    return BaseModel(model, tokenizer, name=str(folder), fingerprint=fingerprint(folder))


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """A run has a display of its own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def fingerprint(folder: Path) -> str:
    """Hex sha256 over the names and contents of a model folder's weight, configuration and tokenizer files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in _HASHED):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
