"""One synchronous GRPO step of primitives, against TRL's `GRPOTrainer` on the same model, questions and settings.

8 questions with 8 completions of 48 tokens each: nothing ends a completion earlier, so that both compute on the same number of
tokens. LoRA of rank 16 on every linear layer, AdamW, no reference model, one gradient step; TRL keeps its activations, which is
the faster way for it. The two take turns inside one process: our step runs in a callback between two steps of TRL's.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import anyio.from_thread
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks._grpo_step import COMPLETIONS, DRAWN, QUESTIONS, RANK, RATE, our_step, reward
from benchmarks._rows import Row, Settings, at_least
from sparring.backend import Lora
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.models import resolve_model


class InTurn(TrainerCallback):
    """Times each of TRL's steps, and a step of ours after it."""

    def __init__(self, ours: Callable[[], None]) -> None:
        self.ours, self.seconds = ours, {"TRL": list[float](), "sparring": list[float]()}
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """TRL starts to generate."""
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """TRL's optimizer has stepped."""
        now = time.perf_counter()
        self.ours()
        for name, seconds in (("TRL", now - self._began), ("sparring", time.perf_counter() - now)):
            self.seconds[name].append(seconds)
            print(f"one GRPO step, {name}: {seconds:.2f} s", file=sys.stderr, flush=True)


def _trainer(settings: Settings, folder: str, output: str, turns: InTurn) -> GRPOTrainer:
    """TRL with the same settings."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=settings.dtype)
    config = GRPOConfig(
        output_dir=output,
        max_steps=settings.rounds + 1,
        per_device_train_batch_size=len(QUESTIONS) * COMPLETIONS,
        num_generations=COMPLETIONS,
        max_completion_length=DRAWN,
        generation_kwargs={"min_new_tokens": DRAWN, "top_k": 0},
        temperature=1.0,
        learning_rate=RATE,
        beta=0.0,
        bf16=settings.dtype == "bfloat16",
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    return GRPOTrainer(
        model=model,
        args=config,
        processing_class=AutoTokenizer.from_pretrained(folder),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in QUESTIONS]}),
        reward_funcs=lambda completions, **_: [reward(one[0]["content"]) for one in completions],
        peft_config=LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[turns],
    )


def grpo_rows(settings: Settings) -> list[Row]:
    """TRL's step against ours; medians, the first of each warms up."""
    ours = LocalBackend(dtype=settings.dtype, threads=settings.threads)
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(ours) as backend,
        tempfile.TemporaryDirectory() as output,
    ):
        model = portal.call(_model, backend, settings)
        turns = InTurn(lambda: portal.call(our_step, model))
        _trainer(settings, str(resolve_model(settings.model)), output, turns).train()
    trl, sparring = (statistics.median(turns.seconds[name][1:]) for name in ("TRL", "sparring"))
    return [
        Row(name="one GRPO step, TRL, s", figure=f"{trl:.2f}"),
        Row(name="one GRPO step, sparring, s", figure=f"{sparring:.2f}"),
        at_least("one GRPO step, TRL / sparring", trl / sparring, 3.0),
    ]


async def _model(backend: LocalBackend, settings: Settings) -> TorchModel:
    return await backend.create_model(settings.model, lora=Lora(rank=RANK, alpha=RANK))
