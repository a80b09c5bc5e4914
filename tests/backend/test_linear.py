"""Layers that read the same are one product where nothing is trained: the same numbers, and the same model otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sparring.backend.local.base import BaseModel
from sparring.backend.local.full import FullModel
from sparring.backend.local.linear import LoraLinear
from sparring.backend.local.lora import Adapter, Segment
from sparring.backend.local.supported import same_input
from sparring.backend.training import Lora
from tests.backend.architectures import ARCHITECTURES, SIZES, tiny
from tests.backend.conftest import tiny_tokenizer

LAYERS = SIZES["num_hidden_layers"]


def _base(name: str) -> BaseModel:
    """With weights, and where there are any biases, that are spread."""
    model = tiny(ARCHITECTURES[name])
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return BaseModel(model, tiny_tokenizer(), name=name, fingerprint="")


def _trained(base: BaseModel, seed: int, lora: Lora) -> Adapter:
    """With a B that changes something."""
    adapter = Adapter(base.targets, lora, seed=seed, dtype=base.dtype, device=base.device)
    for b in adapter.master_b:
        b.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    adapter.refresh()
    return adapter


def _hidden(base: BaseModel, segments: Sequence[Segment], *, joined: bool) -> Tensor:
    """What the body gives of five rows of seven tokens, and whether it was computed the way it should be."""
    rows = sum(count for _, count in segments)
    ids = torch.randint(3, base.vocabulary, (rows, 7), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode(), base.call.rows(segments):
        assert base.call.joins is joined
        found = base.body(input_ids=ids, use_cache=False).last_hidden_state
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize(
    "lora",
    [Lora(rank=4, alpha=8.0), Lora(rank=3, alpha=2.0, mlp=False), Lora(rank=3, alpha=2.0, attention=False)],
    ids=["all", "attention", "mlp"],
)
def test_a_joint_product_is_the_products(name: str, lora: Lora) -> None:
    """Of snapshots, two of them and the base beside each other, against the adapters in training, which are not joined."""
    base = _base(name)
    one, two = _trained(base, 1, lora), _trained(base, 2, Lora(rank=2, alpha=1.0))
    apart = _hidden(base, [(one.weights, 2), (None, 1), (two.weights, 2)], joined=False)
    joint = _hidden(base, [(one.snapshot(), 2), (None, 1), (two.snapshot(), 2)], joined=True)
    torch.testing.assert_close(joint, apart, rtol=1e-5, atol=1e-5)
    without = _hidden(base, [(None, 5)], joined=True)
    assert (joint - without).abs().amax(dim=(1, 2)).gt(1e-3).tolist() == [True, True, False, True, True]


def test_full_weights_are_computed_apart_and_leave_the_parts_as_they_were() -> None:
    base = _base("qwen2")
    before = _hidden(base, [(None, 5)], joined=True)
    full = FullModel(base.named_parameters, head=base.head)
    torch.testing.assert_close(_hidden(base, [(full.weights, 5)], joined=False), before, rtol=1e-5, atol=1e-5)
    full.master.mul_(1.5)
    full.refresh()
    assert (_hidden(base, [(full.snapshot(), 5)], joined=False) - before).abs().max() > 0.1
    torch.testing.assert_close(_hidden(base, [(None, 5)], joined=True), before, rtol=0, atol=0)


def test_the_weights_are_parts_of_one_matrix_each() -> None:
    """No second copy of them."""
    base = _base("llama-untied")
    layers = [module for module in base.body.modules() if isinstance(module, LoraLinear)]
    joined = [layer for layer in layers if layer.joint is not None]
    assert (len(joined), len(layers)) == (5 * LAYERS, 7 * LAYERS)
    matrices = {layer.weight.untyped_storage().data_ptr() for layer in joined}
    assert len(matrices) == 2 * LAYERS
    for layer in joined:
        assert layer.bias is not None and layer.bias.shape == (layer.out_features,)
        assert layer.weight.shape == (layer.out_features, layer.in_features)


def test_a_snapshot_has_one_copy_of_each_matrix() -> None:
    """Whoever changes one changes what both ways compute with."""
    base = _base("qwen3")
    adapter = _trained(base, 1, Lora(rank=4, alpha=8.0))
    snapshot = adapter.snapshot()
    for got, want in zip((*snapshot.a, *snapshot.b), (*adapter.weights.a, *adapter.weights.b), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert snapshot.joint is not None and len(snapshot.joint) == 2 * LAYERS
    owned = {matrix.untyped_storage().data_ptr() for pair in snapshot.joint.values() for matrix in pair}
    parts = [(a, b) for a, b in zip(snapshot.a, snapshot.b, strict=True) if a.untyped_storage().data_ptr() in owned]
    assert len(parts) == 5 * LAYERS and all(b.untyped_storage().data_ptr() in owned for _, b in parts)
    held = {
        matrix.untyped_storage().data_ptr(): matrix.untyped_storage().nbytes() for matrix in (*snapshot.a, *snapshot.b)
    }
    needed = {matrix.data_ptr(): matrix.numel() * 4 for pair in snapshot.joint.values() for matrix in pair}
    needed |= {
        m.data_ptr(): m.numel() * 4 for m in (*snapshot.a, *snapshot.b) if m.untyped_storage().data_ptr() not in owned
    }
    assert sum(held.values()) == sum(needed.values()), "nor is anything else kept alive"
    before = [matrix.clone() for matrix in (*snapshot.a, *snapshot.b)]
    adapter.master.add_(1.0)
    adapter.refresh()
    assert all(torch.equal(now, then) for now, then in zip((*snapshot.a, *snapshot.b), before, strict=True))


def test_what_reads_the_same_is_known_by_name() -> None:
    names = [f"layers.{at}.{part}_proj" for at in (0, 1) for part in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up")]
    assert same_input(names) == [(0, 1, 2), (5, 6, 7)]
    assert same_input(["mlp.up_proj", "mlp.gate_proj", "mlp.down_proj"]) == [(1, 0)]
    assert same_input(["attn.qkv_proj", "mlp.gate_up_proj"]) == []
