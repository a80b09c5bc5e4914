"""One synchronous GRPO step of primitives, against TRL's `GRPOTrainer` on the same model, questions and settings.

8 questions with 8 completions of 48 tokens each: nothing ends a completion earlier, so that both compute on the same number of
tokens. LoRA of rank 16 on every linear layer, AdamW, no reference model, one gradient step; TRL keeps its activations, which is
the faster way for it. The two take turns, each in a process of its own.

python -m benchmarks._grpo TRL|sparring MODEL DTYPE THREADS DEVICE     a step for each line read, prints its seconds
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import redirect_stdout
from typing import Any

import anyio
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks._child import Child, answer, given, in_turn
from benchmarks._grpo_step import COMPLETIONS, DRAWN, QUESTIONS, RANK, RATE, our_step, reward
from benchmarks._rows import Row, Settings, at_least
from sparring.backend import Lora
from sparring.backend.local import LocalBackend
from sparring.backend.models import resolve_model


class OneByOne(TrainerCallback):
    """Lets TRL take a step for each line read, and prints its seconds."""

    def __init__(self) -> None:
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """TRL starts to generate, once it is told to."""
        if not sys.stdin.readline():
            sys.exit(0)
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """TRL's optimizer has stepped."""
        print(time.perf_counter() - self._began, file=sys.__stdout__, flush=True)


def _trainer(settings: Settings, folder: str, output: str, turns: OneByOne) -> GRPOTrainer:
    """TRL with the same settings."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=settings.dtype)
    config = GRPOConfig(
        output_dir=output,
        max_steps=1000,
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


def _trl(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as output, redirect_stdout(sys.stderr):
        _trainer(settings, str(resolve_model(settings.model)), output, OneByOne()).train()


async def _ours(settings: Settings) -> None:
    async with LocalBackend(dtype=settings.dtype, threads=settings.threads, device=settings.device) as backend:
        model = await backend.create_model(settings.model, lora=Lora(rank=RANK, alpha=RANK))

        async def step(_: str) -> float:
            start = time.perf_counter()
            await our_step(model)
            return time.perf_counter() - start

        await answer(step)


async def grpo_rows(settings: Settings) -> list[Row]:
    """TRL's step against ours; medians, the first of each warms up."""
    with (
        Child("benchmarks._grpo", "TRL", settings) as trl,
        Child("benchmarks._grpo", "sparring", settings) as sparring,
    ):
        ways = {"one GRPO step, TRL": trl.step, "one GRPO step, sparring": sparring.step}
        theirs, ours = (await in_turn(ways, settings.rounds)).values()
    return [
        Row(name="one GRPO step, TRL, s", figure=f"{theirs:.2f}"),
        Row(name="one GRPO step, sparring, s", figure=f"{ours:.2f}"),
        at_least("one GRPO step, TRL / sparring", theirs / ours, 3.0),
    ]


if __name__ == "__main__":
    way, given_settings, _ = given()
    torch.set_num_threads(given_settings.threads)
    if way == "TRL":
        _trl(given_settings)
    else:
        anyio.run(_ours, given_settings)
