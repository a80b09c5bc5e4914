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


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_pass_through_one_adapter_is_that_adapters(name: str) -> None:
    """Whose A stands below the matrices is the pass's say, whatever its rank and its layers, and whoever was there before."""
    base = _base(name)
    loras = (
        Lora(rank=4, alpha=8.0),
        Lora(rank=7, alpha=2.0),
        Lora(rank=3, alpha=2.0, mlp=False),
        Lora(rank=4, alpha=1.0),
    )
    adapters = [_trained(base, seed, lora) for seed, lora in enumerate(loras)]
    snapshots = [adapter.snapshot() for adapter in adapters]
    without = _hidden(base, [(None, 5)], joined=True)
    for i in (0, 3, 0, 1, 2, 3, 1, 0):
        found = _hidden(base, [(snapshots[i], 5)], joined=True)
        apart = _hidden(base, [(adapters[i].weights, 5)], joined=False)
        torch.testing.assert_close(found, apart, rtol=1e-5, atol=1e-5)
        assert (found - without).abs().max() > 1e-3
        torch.testing.assert_close(_hidden(base, [(None, 5)], joined=True), without, rtol=0, atol=0)


def test_what_takes_the_place_of_an_adapter_that_is_gone_is_seen() -> None:
    """As a new version takes that of the one before, also where its numbers come to lie in the same memory."""
    base = _base("llama")
    adapter = _trained(base, 1, Lora(rank=4, alpha=8.0))
    for _ in range(5):
        adapter.master.mul_(1.3)
        adapter.refresh()
        found = _hidden(base, [(adapter.snapshot(), 5)], joined=True)
        torch.testing.assert_close(found, _hidden(base, [(adapter.weights, 5)], joined=False), rtol=1e-5, atol=1e-5)


def test_what_is_made_room_for_while_sampling_is_trained_through() -> None:
    """The weights lie elsewhere then, and training goes on with them."""
    base = _base("qwen2")
    adapter = _trained(base, 1, Lora(rank=4, alpha=8.0))

    def gradient() -> Tensor:
        adapter.grad.zero_()
        states = torch.randn(2, 7, base.hidden, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
        with base.call.rows([(adapter.weights, 2)]):
            base.body(inputs_embeds=states, use_cache=False).last_hidden_state.square().sum().backward()
        return adapter.grad.clone()

    before = gradient()
    assert before.abs().max() > 0
    _hidden(base, [(adapter.snapshot(), 5)], joined=True)
    torch.testing.assert_close(gradient(), before, rtol=0, atol=0)


def test_full_weights_are_computed_apart_and_leave_the_parts_as_they_were() -> None:
    base = _base("qwen2")
    _hidden(base, [(_trained(base, 1, Lora(rank=4)).snapshot(), 5)], joined=True)
    before = _hidden(base, [(None, 5)], joined=True)
    full = FullModel(base.named_parameters, head=base.head)
    torch.testing.assert_close(_hidden(base, [(full.weights, 5)], joined=False), before, rtol=1e-5, atol=1e-5)
    full.master.mul_(1.5)
    full.refresh()
    assert (_hidden(base, [(full.snapshot(), 5)], joined=False) - before).abs().max() > 0.1
    torch.testing.assert_close(_hidden(base, [(None, 5)], joined=True), before, rtol=0, atol=0)


def _stored(layers: Sequence[LoraLinear]) -> dict[int, int]:
    """Where the layers' weights lie, and how many bytes there are."""
    stores = [layer.weight.untyped_storage() for layer in layers]
    return {store.data_ptr(): store.nbytes() for store in stores}


def test_the_weights_are_parts_of_one_matrix_each() -> None:
    """No second copy of them, and below each as much room as the largest adapter takes that was alone in a pass."""
    base = _base("llama-untied")
    layers = [module for module in base.body.modules() if isinstance(module, LoraLinear)]
    assert len(layers) == 7 * LAYERS
    before = _stored(layers)
    numbers = 4 * sum(layer.weight.numel() for layer in layers)
    assert len(before) == 4 * LAYERS and sum(before.values()) == numbers
    for rank in (4, 2):
        _hidden(base, [(_trained(base, rank, Lora(rank=rank)).snapshot(), 5)], joined=True)
        after = _stored(layers)
        below = 4 * 4 * sum(layer.in_features for layer in layers)
        assert len(after) == 4 * LAYERS and sum(after.values()) == numbers + below
    for layer in layers:
        assert layer.bias is not None and layer.bias.shape == (layer.out_features,)
        assert layer.weight.shape == (layer.out_features, layer.in_features)


def test_a_snapshot_has_one_copy_of_each_matrix() -> None:
    """Whoever changes one changes what both ways compute with."""
    base = _base("qwen3")
    adapter = _trained(base, 1, Lora(rank=4, alpha=8.0, unembedding=True))
    snapshot = adapter.snapshot()
    for got, want in zip((*snapshot.a, *snapshot.b), (*adapter.weights.a, *adapter.weights.b), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert snapshot.joint is not None and len(snapshot.joint) == 4 * LAYERS + 1, "the output layer's is there too"
    held = {m.untyped_storage().data_ptr(): m.untyped_storage().nbytes() for m in (*snapshot.a, *snapshot.b)}
    needed = {matrix.data_ptr(): matrix.numel() * 4 for pair in snapshot.joint.values() for matrix in pair}
    assert held.keys() == needed.keys()
    assert sum(held.values()) == sum(needed.values()), "nor is anything else kept alive"
    before = [matrix.clone() for matrix in (*snapshot.a, *snapshot.b)]
    adapter.master.add_(1.0)
    adapter.refresh()
    assert all(torch.equal(now, then) for now, then in zip((*snapshot.a, *snapshot.b), before, strict=True))


def test_what_reads_the_same_is_known_by_name() -> None:
    names = [f"layers.{at}.{part}_proj" for at in (0, 1) for part in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up")]
    assert same_input(names) == [(0, 1, 2), (3,), (4,), (5, 6, 7), (8,), (9,)]
    assert same_input(["mlp.up_proj", "mlp.gate_proj", "mlp.down_proj"]) == [(1, 0), (2,)]
    assert same_input(["attn.qkv_proj", "mlp.gate_up_proj"]) == [(0,), (1,)]
