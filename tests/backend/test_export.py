"""What is exported is loaded by PEFT and transformers, and computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from sparring.backend import ScriptedBackend
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.losses import CrossEntropy
from sparring.backend.training import Lora
from sparring.errors import SettingError, UnsupportedError
from tests.backend.architectures import assert_same_logprobs, plain
from tests.backend.batches import LORA, groups, spread

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer")
EVERYTHING = Lora(rank=4, alpha=8.0, unembedding=True)


@pytest.fixture
def anyio_backend() -> str:
    """One event loop is enough: what is compared here happens on the engine thread."""
    return "asyncio"


async def _equals(model: TorchModel, other: torch.nn.Module) -> None:
    data = groups(2, 2)
    assert_same_logprobs(data, await model.forward(data, CrossEntropy()), other, atol=5e-5)


async def test_an_exported_adapter_is_pefts(backend: LocalBackend, architecture: Path, tmp_path: Path) -> None:
    model = await backend.create_model(str(architecture), lora=EVERYTHING)
    spread(model)
    path = await model.export("mine")
    assert Path(path) == tmp_path / "exports" / "mine"
    await _equals(model, PeftModel.from_pretrained(plain(architecture), path))


@pytest.mark.parametrize("lora", [LORA, EVERYTHING])
async def test_a_merged_folder_is_transformers(
    backend: LocalBackend, architecture: Path, lora: Lora, tmp_path: Path
) -> None:
    """And a base for further training, also where the adapter unties what was tied."""
    model = await backend.create_model(str(architecture), lora=lora)
    spread(model)
    path = await model.export(str(tmp_path / "merged"), "merged")
    merged = plain(Path(path))
    assert type(merged) is type(plain(architecture))
    tied = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert tied == (plain(architecture).config.tie_word_embeddings and not lora.unembedding)
    await _equals(model, merged)
    again = await backend.create_model(path, lora=LORA)
    data = groups(1, 2)
    ours, theirs = await model.forward(data, CrossEntropy()), await again.forward(data, CrossEntropy())
    for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=5e-5)
    messages = [{"role": "user", "content": "What is 1 + 2?"}]
    tokenizers = [AutoTokenizer.from_pretrained(str(folder)) for folder in (path, architecture)]
    assert tokenizers[0].apply_chat_template(messages) == tokenizers[1].apply_chat_template(messages)


async def test_exporting_changes_neither_model_nor_base(backend: LocalBackend, tiny_llama: Path) -> None:
    model = await backend.create_model(str(tiny_llama), lora=EVERYTHING)
    spread(model)
    data = groups(1, 2)
    before, digest = await model.forward(data, CrossEntropy()), await model.digest()
    await model.export("mine", "merged")
    after = await model.forward(data, CrossEntropy())
    assert all(np.array_equal(a, b) for a, b in zip(before.logprobs, after.logprobs, strict=True))
    assert await model.digest() == digest


async def test_a_folder_that_is_there_is_not_touched(model: TorchModel, tmp_path: Path) -> None:
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "mine").write_text("precious")
    forms: tuple[Literal["adapter"], Literal["merged"]] = ("adapter", "merged")
    for form in forms:
        with pytest.raises(SettingError, match="exports/mine': it is there already; give a folder that is not"):
            await model.export("mine", form)
    assert (tmp_path / "exports" / "mine").read_text() == "precious"
    with pytest.raises(SettingError, match="form='gguf': must be 'adapter' or 'merged'"):
        model.export("other", "gguf")  # type: ignore[arg-type]


async def test_the_scripted_backend_has_nothing_to_export(tmp_path: Path) -> None:
    model = await ScriptedBackend().create_model("m")
    with pytest.raises(UnsupportedError, match="no weights to export"):
        model.export(str(tmp_path / "mine"))
