"""Exports load with plain transformers and compute what was trained."""

import errno
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rendering import write_extended_tokenizer
from trained_models import GEMMA, GPT2, LLAMA, MIXED, PROBE, QWEN, logits, trained
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from polysome.config import ResourceError
from polysome.models.backbone import ModelSource, build_model
from polysome.models.trainability import Rule
from polysome.training import export as export_module
from polysome.training.adapter import load_adapter
from polysome.training.export import export

FULL = [Rule(match=".", mode="full")]
ATTENTION = [Rule(match="norm|ln_|embed_tokens|wte|lm_head", mode="full"),
             Rule(match="attn", mode="lora", rank=4, alpha=8)]  # fmt: skip


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_export_computes_what_was_trained(dtype, tolerance: float, tiny_tokenizer: str, tmp_path: Path) -> None:
    model, masters, wanted = trained(LLAMA, tiny_tokenizer, MIXED)
    for value in model.parameters():  # what DeepSpeed trains; the masters stay fp32
        value.data = value.data.to(dtype)
    folder = export(model, masters, tokenizer_folder=tiny_tokenizer, folder=str(tmp_path), dtype=dtype, probe=PROBE)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert loaded.dtype == dtype
    assert loaded.config.use_cache
    assert (logits(loaded) - wanted).abs().max() < tolerance * wanted.abs().max()
    assert not loaded.generation_config.do_sample
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_tokenizer).chat_template
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "export"]


@pytest.mark.parametrize("rules", [FULL, ATTENTION], ids=["full", "lora"])
@pytest.mark.parametrize(
    "config",
    [LLAMA | {"tie_word_embeddings": True}, LLAMA | {"vocab_size": 400}, QWEN, GEMMA, GPT2],
    ids=["tied", "padded-vocabulary", "qwen2", "gemma", "gpt2"],
)
def test_no_weight_is_lost(config: dict, rules: list, tiny_tokenizer: str, tmp_path: Path) -> None:
    model, masters, wanted = trained(config, tiny_tokenizer, rules)
    folder = export(model, masters, tokenizer_folder=tiny_tokenizer, folder=str(tmp_path), dtype=torch.float32,
                    probe=PROBE)  # fmt: skip
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert (logits(loaded) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    full = {name: value for name, value in masters.items() if "lora_" not in name}
    assert full
    for name, value in full.items():
        assert torch.equal(loaded.get_parameter(name), value), name
    assert (tmp_path / "adapter").is_dir() == (rules is ATTENTION)


def test_adapter_on_its_base_is_the_export(tiny_tokenizer: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    build_model(ModelSource(config=LLAMA), tiny_tokenizer, seed=1).save_pretrained(base)
    model, masters, _ = trained(str(base), tiny_tokenizer, MIXED)
    folder = export(model, masters, tokenizer_folder=tiny_tokenizer, folder=str(tmp_path / "run"), dtype=torch.float32,
                    probe=PROBE)  # fmt: skip
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "run" / "adapter").eval()
    assert (logits(loaded) - logits(AutoModelForCausalLM.from_pretrained(folder).eval())).abs().max() <= 1e-5


@pytest.mark.parametrize("embedding", ["full", "frozen"])
def test_adapter_of_added_tokens_gives_its_base_their_rows(embedding: str, tmp_path: Path) -> None:
    tokenizer = write_extended_tokenizer(tmp_path / "tokenizers", ["Is there a promoter? Yes, there is."])
    base = tmp_path / "base"
    build_model(ModelSource(config=LLAMA), str(tokenizer.parent / "base"), seed=1).save_pretrained(base)
    AutoTokenizer.from_pretrained(tokenizer.parent / "base").save_pretrained(base)
    rules = [Rule(match="embed_tokens|lm_head", mode=embedding), Rule(match="_proj", mode="lora", rank=4, alpha=8)]
    model, masters, _ = trained(str(base), str(tokenizer), rules)
    folder = export(model, masters, tokenizer_folder=str(tokenizer), folder=str(tmp_path / "run"), probe=PROBE,
                    dtype=torch.float32)  # fmt: skip
    merged = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder).encode("<dna><dna:A><dna:C></dna>")])
    loaded = load_adapter(str(base), str(tmp_path / "run" / "adapter"))
    with torch.no_grad():
        assert (loaded(input_ids=ids).logits - merged(input_ids=ids).logits).abs().max() <= 1e-5


def test_a_master_without_a_parameter_stops_the_export(tiny_tokenizer: str, tmp_path: Path) -> None:
    model, masters, _ = trained(LLAMA, tiny_tokenizer, MIXED)
    masters["model.layers.9.mlp.up_proj.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="belong to no parameter"):
        export(model, masters, tokenizer_folder=tiny_tokenizer, folder=str(tmp_path), dtype=torch.float32, probe=PROBE)


def test_a_weight_changed_on_disk_is_seen_beyond_the_probe(
    tiny_tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, masters, _ = trained(LLAMA, tiny_tokenizer, FULL)
    real = export_module.load_weights

    def damaged(*arguments, **options) -> PreTrainedModel:
        read = real(*arguments, **options)
        read.model.embed_tokens.weight.data[300] += 1  # a token that the probe does not hold
        return read

    monkeypatch.setattr(export_module, "load_weights", damaged)
    with pytest.raises(RuntimeError, match=r"1 other weights, the first is model.embed_tokens.weight"):
        export(model, masters, tokenizer_folder=tiny_tokenizer, folder=str(tmp_path), dtype=torch.float32, probe=PROBE)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_that_loads(
    tiny_tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, masters, _ = trained(LLAMA, tiny_tokenizer, MIXED)
    (tmp_path / ".export-killed").mkdir()

    def full(self, folder: str, **options) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(ResourceError, match="No space left") as raised:
        export(model, masters, tokenizer_folder=tiny_tokenizer, folder=str(tmp_path), dtype=torch.float32, probe=PROBE)
    assert str(tmp_path) in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_remote_export_is_complete_and_commits_last(tiny_tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    filesystem = fsspec.filesystem("memory")
    written: list[str] = []
    real = type(filesystem).put_file

    def put_file(self, local: str, remote: str, **options) -> None:
        if Path(remote).name == stop:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(f"{Path(remote).parent.name}/{Path(remote).name}")
        real(self, local, remote, **options)

    monkeypatch.setattr(type(filesystem), "put_file", put_file)

    def run(folder: str) -> set[str]:
        model, masters, _ = trained(LLAMA, tiny_tokenizer, MIXED)
        export(model, masters, tokenizer_folder=tiny_tokenizer, folder=folder, dtype=torch.float32, probe=PROBE)
        return {Path(name).name for name in filesystem.ls("/runs/a/export", detail=False)}

    stop = ""
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= run("memory://runs/a")
    assert written[-1] == "export/config.json"
    assert [name for name in written if name.startswith("adapter/")][-1] == "adapter/adapter_config.json"
    stop = "model.safetensors"
    with pytest.raises(ResourceError):
        run("memory://runs/a")
    assert not filesystem.exists("/runs/a/export/config.json")
