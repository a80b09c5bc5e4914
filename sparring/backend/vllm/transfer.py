"""All weights of a model into a running vLLM, by vLLM's own weight transfer: an engine that reads a safetensors file.

Imported inside vLLM's worker processes alone, where `WorkerExtension` brings it: that is how vLLM lets an engine of one's own
be known there, without a plugin that would have to be installed. vLLM's engines for this (NCCL, CUDA IPC) need GPUs; a file in
memory does not, and is what an engine that was started anew can read again.
"""

# vLLM is not where types are checked: what comes from it is Any.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

BACKEND = "sparring-file"
"""The name of the engine among vLLM's."""


@dataclass
class FileInit(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing has to be agreed on before."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """`path` is a safetensors file with all weights, under the names of the model's folder."""

    path: str


class FileTransfer(WeightTransferEngine[FileInit, FileUpdate]):  # type: ignore[misc]
    """Reads a file into the model; each worker takes its own part."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def init_transfer_engine(self, init_info: FileInit) -> None:
        """There is nobody to connect to."""

    def start_weight_update(self) -> None:
        """Let the layers take weights as they are in a model's folder."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Read the file, tensor by tensor."""
        self.model.load_weights(_tensors(update_info.path, str(self.device)))

    def finish_weight_update(self) -> None:
        """Make of the weights what is computed with."""
        finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():
            # An output layer that is the input embedding is not in the file, and on a CPU it computes with a packed copy.
            if isinstance(module, VocabParallelEmbedding):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """It holds nothing."""


def _tensors(path: str, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path, framework="pt", device=device) as file:
        names: list[str] = file.keys()
        for name in names:
            yield name, file.get_tensor(name)


class WorkerExtension:
    """What vLLM's `worker_extension_cls` names: vLLM imports this module for it, before it makes its transfer engine."""


WeightTransferEngineFactory.register_engine(BACKEND, FileTransfer)
