"""Adapters on a CPU by one matrix product for each of them, where vLLM gathers an adapter's matrices once for every token.

vLLM has its arithmetic of adapters behind an interface (`PunicaWrapperBase`), one implementation for each platform, and hands
it to each layer by `set_mapping`. `WorkerExtension.group_adapters` hands out another one for CPUs. It is called once when an
engine was started, by vLLM's `collective_rpc`; imported inside vLLM's worker processes alone.
"""

# vLLM is not where types are checked: what comes from it is Any.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import linear
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Group = tuple[int, Tensor | None]
"""The place of an adapter among the stacked ones, and the rows of a step that it applies to; None for all."""


def groups(places: Tensor) -> list[Group]:
    """The adapters of a step, from the place of each row's, i64[rows]; -1 is none."""
    found: list[int] = places.unique().tolist()
    if len(found) == 1:
        return [] if found[0] < 0 else [(found[0], None)]
    return [(place, (places == place).nonzero().flatten()) for place in found if place >= 0]


def add_adapter(y: Tensor, x: Tensor, a: Sequence[Tensor], b: Sequence[Tensor], widths: Sequence[int]) -> None:
    """y[:, slice] += x A^T B^T for each slice of the output; `y` [rows, sum(widths)], A [rank, inputs], B [width, rank]."""
    start = 0
    for down, up, width in zip(a, b, widths, strict=True):
        y[:, start : start + width] += linear(linear(x, down), up)
        start += width


class GroupedAdapters(PunicaWrapperCPU):  # type: ignore[misc]
    """What applies adapters to the linear layers of a model; the rest is vLLM's."""

    def update_metadata(self, mapping: Any, lora_index_to_id: Any, max_loras: int, vocab_size: int) -> None:
        """A step begins: which of its rows have which adapter."""
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        self._groups = groups(self.token_lora_indices)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Sequence[Tensor],
        lora_b_stacked: Sequence[Tensor],
        scale: float,
        output_slices: Sequence[int],
    ) -> None:
        """Add to `y`, in place; the stacked matrices are [adapters, 1, rank, inputs] and [adapters, 1, width, rank]."""
        assert scale == 1, scale  # vLLM multiplies B with it when it loads an adapter
        for place, rows in self._groups:
            a, b = ([matrices[place, 0] for matrices in stacked] for stacked in (lora_a_stacked, lora_b_stacked))
            if rows is None:
                add_adapter(y, x, a, b, output_slices)
            else:
                part = y[rows]
                add_adapter(part, x[rows], a, b, output_slices)
                y[rows] = part


class WorkerExtension:
    """What vLLM's `worker_extension_cls` names: its methods can be called in each worker process."""

    def group_adapters(self) -> None:
        """Give every adapted layer `GroupedAdapters`."""
        manager = self.get_model().lora_manager  # type: ignore[attr-defined]
        (kept,) = manager.punica_wrapper_mapping
        wrapper = GroupedAdapters(manager.max_num_batched_tokens, manager.max_num_seqs, manager.device)
        manager.punica_wrapper_mapping[kept] = wrapper
        for module in manager.modules.values():
            module.set_mapping(wrapper)
