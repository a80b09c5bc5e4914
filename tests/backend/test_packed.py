"""Matrices that are laid out once: the same bits as plain products, and never the numbers of another model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sparring.backend.local.base import BaseModel
from sparring.backend.local.full import FullModel
from sparring.backend.local.lora import Adapter, Segment
from sparring.backend.local.packed import MOST_BYTES, PackedLinear, packs
from sparring.backend.training import Lora
from tests.backend.architectures import ARCHITECTURES, tiny
from tests.backend.conftest import tiny_tokenizer

CPU = torch.device("cpu")
needs_bfloat16 = pytest.mark.skipif(not packs(0, torch.bfloat16, CPU), reason="oneDNN has no bfloat16 here")


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(torch.bfloat16)


@needs_bfloat16
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 96), (576, 960), (100, 37)])
@pytest.mark.parametrize("bias", [False, True])
def test_any_number_of_rows_gives_the_bits_of_a_plain_product(inputs: int, outputs: int, bias: bool) -> None:
    weight, added = _random(outputs, inputs), _random(outputs) if bias else None
    layer = PackedLinear(packs=True)
    with torch.inference_mode():
        for rows in (1, 5, 64, 200, 1):
            x = _random(rows, inputs)
            assert torch.equal(layer(x, weight, added), functional.linear(x, weight, added)), rows


@needs_bfloat16
def test_the_layout_is_made_once() -> None:
    """So that nobody may write to the matrix: what is written later is not seen."""
    weight, x, layer = _random(8, 4), _random(3, 4), PackedLinear(packs=True)
    with torch.inference_mode():
        before = layer(x, weight, None)
        assert torch.equal(layer(x, weight + 1, None), before)
        plain = PackedLinear(packs=False)
        assert torch.equal(plain(x, weight, None), before)
        assert not torch.equal(plain(x, weight + 1, None), before)


def test_what_is_not_packed() -> None:
    """fp32, whose products are the same wherever a row stands; other devices; and models too large to be held twice."""
    assert not packs(1, torch.float32, CPU)
    assert not packs(1, torch.bfloat16, torch.device("meta"))
    assert not packs(MOST_BYTES + 1, torch.bfloat16, CPU)


def _base(name: str) -> BaseModel:
    """In bfloat16, its weights spread."""
    model = tiny(ARCHITECTURES[name])
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    model.bfloat16()
    return BaseModel(model, tiny_tokenizer(), name=name, fingerprint="")


def _hidden(base: BaseModel, segment: Segment) -> Tensor:
    ids = torch.randint(3, base.vocabulary, (segment[1], 7), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode(), base.call.rows([segment]):
        found = base.body(input_ids=ids, use_cache=False).last_hidden_state
    assert isinstance(found, Tensor)
    return found


@needs_bfloat16
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma"])
def test_a_whole_model_computes_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a snapshot too, whose product is added to the base's."""
    packed = _base(name)
    monkeypatch.setattr("sparring.backend.local.packed.MOST_BYTES", 0)
    plain = _base(name)
    adapter = Adapter(packed.targets, Lora(rank=4, alpha=8.0), seed=1, dtype=packed.dtype, device=packed.device)
    adapter.master.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    adapter.refresh()
    for weights in (None, adapter.snapshot()):
        assert torch.equal(_hidden(packed, (weights, 5)), _hidden(plain, (weights, 5)))
    assert not torch.equal(_hidden(packed, (adapter.snapshot(), 5)), _hidden(packed, (None, 5)))


@needs_bfloat16
def test_full_weights_never_meet_the_base_s_layout() -> None:
    base = _base("llama")
    before = _hidden(base, (None, 3))
    full = FullModel(base.named_parameters, head=base.head)
    full.master.mul_(1.5)
    full.refresh()
    assert not torch.equal(_hidden(base, (full.snapshot(), 3)), before)
    assert torch.equal(_hidden(base, (None, 3)), before)
