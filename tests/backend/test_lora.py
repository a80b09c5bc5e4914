"""Adapters: equal to PEFT in outputs, gradients and files; the choice of adapter belongs to the call."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from sparring.backend.local.base import BaseModel, load_base
from sparring.backend.local.checkpoint import adapter_files, write_folder
from sparring.backend.local.linear import LoraLinear
from sparring.backend.local.lora import Adapter, AdapterCall, Target
from sparring.backend.training import Lora

CPU = torch.device("cpu")
LORA = Lora(rank=4, alpha=8.0)


def _base(folder: Path) -> BaseModel:
    return load_base(folder, dtype=torch.float32, device=CPU)


def _adapter(base: BaseModel, seed: int = 0, lora: Lora = LORA) -> Adapter:
    """A fresh adapter whose B is not zero, so that it changes something."""
    adapter = Adapter(base.targets, lora, seed=seed, dtype=base.dtype, device=CPU)
    generator = torch.Generator().manual_seed(seed + 100)
    for b in adapter.master_b:
        b.normal_(0, 0.1, generator=generator)
    adapter.refresh()
    return adapter


def _peft(folder: Path, base: BaseModel, adapter: Adapter, scratch: Path) -> nn.Module:
    """The same adapter in PEFT, through the files that we write."""
    write_folder(scratch, adapter_files(adapter, base.name))
    plain = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    return PeftModel.from_pretrained(plain, str(scratch), is_trainable=True)


def _ids(base: BaseModel, rows: int = 3, length: int = 17) -> Tensor:
    return torch.randint(0, base.vocabulary, (rows, length), generator=torch.Generator().manual_seed(3))


def _logits(base: BaseModel, ids: Tensor) -> Tensor:
    hidden = base.body(input_ids=ids, use_cache=False).last_hidden_state
    assert isinstance(hidden, Tensor)
    return hidden @ base.head.T


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).detach().norm() / want.detach().norm())


def test_outputs_and_gradients_equal_pefts(tiny_model: Path, tmp_path: Path) -> None:
    base = _base(tiny_model)
    adapter = _adapter(base)
    peft = _peft(tiny_model, base, adapter, tmp_path / "adapter")
    ids = _ids(base)
    direction = torch.randn(3, 17, base.vocabulary, generator=torch.Generator().manual_seed(4))

    want = peft(input_ids=ids).logits
    (want * direction).sum().backward()
    embedded = base.model.get_input_embeddings()(ids).requires_grad_(True)
    with base.call.rows([(adapter.weights, 3)]):
        got = base.body(inputs_embeds=embedded, use_cache=False).last_hidden_state @ base.head.T
        (got * direction).sum().backward()

    assert _relative(got, want) < 1e-5
    gradients = {name: p.grad for name, p in peft.named_parameters() if p.grad is not None}
    assert len(gradients) == 2 * len(adapter.targets)
    for target, a, b in zip(adapter.targets, adapter.weights.grad_a, adapter.weights.grad_b, strict=True):
        want_a = gradients[f"base_model.model.{target.name}.lora_A.default.weight"]
        want_b = gradients[f"base_model.model.{target.name}.lora_B.default.weight"]
        assert _relative(a, want_a) < 1e-5, target
        assert _relative(b, want_b) < 1e-5, target


def test_the_adapter_matters(tiny_llama: Path) -> None:
    base = _base(tiny_llama)
    adapter = _adapter(base)
    ids = _ids(base)
    with torch.no_grad():
        with base.call.rows([(adapter.weights, 3)]):
            adapted = _logits(base, ids)
        with base.call.rows([(None, 3)]):
            plain = _logits(base, ids)
    assert _relative(adapted, plain) > 1e-2


def test_a_fresh_adapter_changes_nothing(tiny_llama: Path) -> None:
    base = _base(tiny_llama)
    adapter = Adapter(base.targets, LORA, seed=0, dtype=base.dtype, device=CPU)
    ids = _ids(base)
    with torch.no_grad():
        with base.call.rows([(adapter.weights, 3)]):
            adapted = _logits(base, ids)
        with base.call.rows([(None, 3)]):
            assert torch.equal(adapted, _logits(base, ids))


def test_rows_go_through_the_adapters_that_the_call_names(tiny_llama: Path) -> None:
    base = _base(tiny_llama)
    first, second = _adapter(base, 1), _adapter(base, 2, Lora(rank=2, alpha=1.0))
    ids = _ids(base, rows=5)
    mixed = [(first.weights, 2), (None, 1), (second.snapshot(), 2)]
    with torch.no_grad():
        with base.call.rows(mixed):
            together = _logits(base, ids)
        alone = []
        for (adapter, count), part in zip(mixed, ids.split([2, 1, 2]), strict=True):
            with base.call.rows([(adapter, count)]):
                alone.append(_logits(base, part))
    assert _relative(together, torch.cat(alone)) < 1e-6


def test_gradients_of_a_mixed_call_stay_with_their_adapters(tiny_llama: Path) -> None:
    base = _base(tiny_llama)
    first, second = _adapter(base, 1), _adapter(base, 2)
    ids = _ids(base, rows=3)

    direction = torch.randn(17, base.hidden, generator=torch.Generator().manual_seed(4))

    def run(segments: list[tuple[Adapter, int]], ids: Tensor) -> None:
        embedded = base.model.get_input_embeddings()(ids).requires_grad_(True)
        with base.call.rows([(adapter.weights, count) for adapter, count in segments]):
            (base.body(inputs_embeds=embedded, use_cache=False).last_hidden_state * direction).sum().backward()

    run([(first, 2), (second, 1)], ids)
    together = first.grad.clone(), second.grad.clone()
    first.grad.zero_()
    second.grad.zero_()
    run([(first, 2)], ids[:2])
    assert _relative(together[0], first.grad) < 1e-5
    assert second.grad.count_nonzero() == 0
    run([(second, 1)], ids[2:])
    assert _relative(together[1], second.grad) < 1e-5


def test_a_snapshot_does_not_follow_its_adapter(tiny_llama: Path) -> None:
    base = _base(tiny_llama)
    adapter = _adapter(base)
    snapshot = adapter.snapshot()
    before = [b.clone() for b in snapshot.b]
    adapter.master.add_(1.0)
    adapter.refresh()
    assert all(torch.equal(b, c) for b, c in zip(snapshot.b, before, strict=True))
    assert not snapshot.trains
    assert not torch.equal(snapshot.b[0], adapter.weights.b[0])


def test_a_pass_outside_of_a_call_is_refused(tiny_llama: Path) -> None:
    base = _base(tiny_llama)
    with pytest.raises(AssertionError, match="which adapter is not said"):
        _logits(base, _ids(base))


def test_calls_neither_nest_nor_leak_after_a_failure() -> None:
    call = AdapterCall()
    with pytest.raises(AssertionError, match="nest"), call.rows([(None, 1)]), call.rows([(None, 1)]):
        pass
    with call.rows([(None, 2), (None, 3)]):
        assert call.segments == ((None, 5),)


def test_bias_is_kept() -> None:
    linear = nn.Linear(3, 5)
    call = AdapterCall()
    layer = LoraLinear(linear, call, 0)
    adapter = Adapter(
        [Target(name="layer", inputs=3, outputs=5, part="attention")], LORA, seed=0, dtype=torch.float32, device=CPU
    )
    x = torch.randn(2, 4, 3)
    for segments in ([(adapter.weights, 2)], [(None, 2)], [(adapter.weights, 1), (None, 1)]):
        with call.rows(segments):
            assert torch.allclose(layer(x), linear(x), atol=1e-6)


def test_gradients_equal_numeric_ones() -> None:
    """In float64, input and both matrices, against finite differences."""
    call = AdapterCall()
    linear = nn.Linear(3, 5, dtype=torch.float64)
    layer = LoraLinear(linear, call, 0)
    targets = [Target(name="layer", inputs=3, outputs=5, part="attention")]
    adapter = Adapter(targets, Lora(rank=2, alpha=3.0), seed=0, dtype=torch.float64, device=CPU)
    adapter.weights.b[0].normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    with call.rows([(adapter.weights, 4)]):
        assert torch.autograd.gradcheck(layer, (x,))
        adapter.grad.zero_()
        layer(x).square().sum().backward()
        weights = adapter.weights
        for values, gradient in zip(weights.a + weights.b, weights.grad_a + weights.grad_b, strict=True):
            slopes = [
                _slope(lambda: layer(x).detach().square().sum(), values.view(-1), i) for i in range(values.numel())
            ]
            torch.testing.assert_close(gradient.view(-1), torch.tensor(slopes), rtol=1e-5, atol=1e-5)


def _slope(value: Callable[[], Tensor], flat: Tensor, place: int, step: float = 1e-5) -> float:
    """The central difference of `value` in one number of `flat`."""
    kept, ends = float(flat[place]), []
    for shift in (step, -step):
        flat[place] = kept + shift
        ends.append(float(value()))
    flat[place] = kept
    return (ends[0] - ends[1]) / (2 * step)


def test_bfloat16_gradients_gather_in_float32(tiny_llama: Path) -> None:
    """Many small contributions: a bfloat16 buffer would stop growing after 256 equal ones."""
    call = AdapterCall()
    layer = LoraLinear(nn.Linear(2, 2, bias=False, dtype=torch.bfloat16), call, 0)
    targets = [Target(name="layer", inputs=2, outputs=2, part="attention")]
    adapter = Adapter(targets, Lora(rank=1, alpha=1.0), seed=0, dtype=torch.bfloat16, device=CPU)
    adapter.weights.a[0].fill_(1.0)
    x = torch.ones(1, 2, dtype=torch.bfloat16, requires_grad=True)
    with call.rows([(adapter.weights, 1)]):
        for _ in range(1000):
            layer(x).sum().backward()
    assert adapter.weights.grad_b[0].tolist() == [[2000.0], [2000.0]]


def test_initialisation_is_pefts_and_a_function_of_the_seed() -> None:
    targets = [Target(name="layer", inputs=64, outputs=48, part="attention")] * 8
    one, same, other = (Adapter(targets, LORA, seed=s, dtype=torch.float32, device=CPU) for s in (1, 1, 2))
    assert torch.equal(one.master, same.master)
    assert not torch.equal(one.master, other.master)
    assert all(int(b.count_nonzero()) == 0 for b in one.master_b)
    model = get_peft_model(nn.ModuleDict({"layer": nn.Linear(64, 48)}), LoraConfig(r=4, target_modules=["layer"]))
    theirs = next(p.detach() for name, p in model.named_parameters() if "lora_A" in name)
    ours = torch.stack(list(one.master_a))
    bound = 1 / math.sqrt(64)
    for values in (theirs, ours):
        assert 0.9 * bound < float(values.abs().max()) <= bound
    assert float(ours.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_initialisation_does_not_touch_the_global_generator() -> None:
    targets = [Target(name="layer", inputs=4, outputs=4, part="attention")]
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    Adapter(targets, LORA, seed=5, dtype=torch.float32, device=CPU)
    assert torch.equal(torch.rand(1), want)
