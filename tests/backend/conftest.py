"""Tiny random models with a tokenizer and a chat template of their own, so that no test downloads anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from tests.backend.architectures import ARCHITECTURES, SIZES, tiny
from tests.backend.batches import LORA

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = [f"What is {a} + {b}? The answer is {a + b}." for a in range(30) for b in range(30)]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of at most 320 tokens, trained on sums, with a ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML
    return fast


def saved(model: PreTrainedModel, folder: Path) -> Path:
    """Spread weights (a fresh model's logits are all but equal), then model and tokenizer into a folder."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2, generator=generator)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama: 2 layers, 32 wide, grouped-query attention, tied embeddings."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    return saved(model, tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Qwen3: as the Llama, with norms on queries and keys, and an output layer of its own."""
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=False))
    return saved(model, tmp_path_factory.mktemp("models") / "tiny-qwen3")


@pytest.fixture(scope="session")
def tiny_long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama with a context of 6144 tokens."""
    config = LlamaConfig(**{**SIZES, "max_position_embeddings": 6144}, tie_word_embeddings=True)
    return saved(LlamaForCausalLM(config), tmp_path_factory.mktemp("models") / "tiny-long")


@pytest.fixture(scope="session")
def tiny_wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama with heads of 32, as narrow as vLLM computes them on a CPU."""
    sizes = {**SIZES, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    return saved(LlamaForCausalLM(LlamaConfig(**sizes)), tmp_path_factory.mktemp("models") / "tiny-wide")


@pytest.fixture(scope="session")
def tiny_tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, its output layer tied to the input embedding."""
    sizes = {
        **SIZES,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    }
    return saved(LlamaForCausalLM(LlamaConfig(**sizes)), tmp_path_factory.mktemp("models") / "tiny-tied")


@pytest.fixture(scope="session", params=["llama", "qwen3"])
def tiny_model(request: pytest.FixtureRequest, tiny_llama: Path, tiny_qwen3: Path) -> Path:
    """Each tiny model in turn."""
    return tiny_llama if request.param == "llama" else tiny_qwen3


@pytest.fixture(scope="session", params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model of each architecture in turn."""
    return saved(tiny(ARCHITECTURES[request.param]), tmp_path_factory.mktemp("architectures") / request.param)


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[LocalBackend]:
    """A deterministic backend that keeps its states in `tmp_path`."""
    with anyio.fail_after(120):
        async with LocalBackend(deterministic=True, cache_dir=tmp_path) as backend:
            yield backend


@pytest.fixture
async def free(tmp_path: Path) -> AsyncIterator[LocalBackend]:
    """A backend that is not deterministic."""
    with anyio.fail_after(120):
        async with LocalBackend(dtype="float32", cache_dir=tmp_path) as backend:
            yield backend


@pytest.fixture
async def following(free: LocalBackend, tiny_llama: Path) -> TorchModel:
    """A fresh adapter on the tiny Llama, of a backend whose models can be followed."""
    return await free.create_model(str(tiny_llama), lora=LORA, seed=1)


@pytest.fixture
async def model(backend: LocalBackend, tiny_llama: Path) -> TorchModel:
    """A fresh adapter on the tiny Llama."""
    return await backend.create_model(str(tiny_llama), lora=LORA)
