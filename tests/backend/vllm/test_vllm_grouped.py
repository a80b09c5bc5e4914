"""Adapters by one product for each of them: the numbers of vLLM's own arithmetic, for any rows of a step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # what vLLM imports
INPUTS, WIDTHS, RANK, PLACES = 24, (16, 8, 8), 4, 3


def stacked(places: int, *shape: int) -> Tensor:
    return torch.randn(places, 1, *shape)


@pytest.mark.parametrize(
    "adapters",
    [
        (1, 1, 1, 1, 1),  # one for all
        (2, 1, 1, 3, 2),  # several, not side by side
        (0, 1, 0, 3, 0),  # 0 is none
        (0, 0, 0, 0, 0),
    ],
)
def test_what_is_added_is_what_vllm_adds(adapters: tuple[int, ...]) -> None:
    """vLLM's own takes no rows without an adapter beside others; those stay as they are."""
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from sparring.backend.vllm.grouped import GroupedAdapters

    torch.manual_seed(0)
    rows = len(adapters)
    a = tuple(stacked(PLACES, RANK, INPUTS) for _ in WIDTHS)
    b = tuple(stacked(PLACES, width, RANK) for width in WIDTHS)
    x, base = torch.randn(rows, INPUTS), torch.randn(rows, sum(WIDTHS))
    mapping = LoRAMapping(adapters, adapters, is_prefill=True)
    found = []
    for kind in (PunicaWrapperCPU, GroupedAdapters):
        wrapper, y = kind(64, 8, "cpu"), base.clone()
        wrapper.update_metadata(mapping, [3, 1, 2], PLACES + 1, 100)
        wrapper.add_lora_linear(y, x, a, b, 1.0, WIDTHS)
        found.append(y)
    wanted, ours = found
    none = torch.tensor([adapter == 0 for adapter in adapters])
    torch.testing.assert_close(ours[~none], wanted[~none], atol=1e-5, rtol=1e-5)
    assert torch.equal(ours[none], base[none])
    assert none.all() or not torch.equal(ours, base)


def test_every_adapted_layer_is_given_it() -> None:
    from sparring.backend.vllm.grouped import GroupedAdapters, WorkerExtension

    given: list[object] = []
    layer = SimpleNamespace(set_mapping=given.append)
    manager = SimpleNamespace(
        punica_wrapper_mapping={"language": None},
        modules={"q": layer, "k": layer},
        max_num_batched_tokens=64,
        max_num_seqs=8,
        device="cpu",
    )

    class Worker(WorkerExtension):
        def get_model(self) -> SimpleNamespace:
            return SimpleNamespace(lora_manager=manager)

    Worker().group_adapters()
    (wrapper,) = manager.punica_wrapper_mapping.values()
    assert isinstance(wrapper, GroupedAdapters) and given == [wrapper, wrapper]
