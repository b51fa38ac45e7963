"""Exports load with plain transformers and compute what was trained."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from polysome.models.attention import pack
from polysome.models.backbone import ModelSource, build_model
from polysome.models.trainability import Rule, apply
from polysome.training.export import export

LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4}  # fmt: skip
PROBE = torch.arange(20, 60)[None]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_export_computes_what_was_trained(dtype, tolerance: float, tiny_tokenizer: str, tmp_path: Path) -> None:
    model = build_model(ModelSource(config=LLAMA), tiny_tokenizer, seed=1)
    rules = [Rule(match="q_proj", mode="full"), Rule(match="_proj", mode="lora", rank=4, alpha=8)]
    apply(model, rules, seed=1)
    torch.manual_seed(0)
    masters = {
        name: value.detach() + 0.05 * torch.randn_like(value)
        for name, value in model.named_parameters()
        if value.requires_grad
    }
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in masters:
                value.copy_(masters[name])
        trained = model(input_ids=PROBE, packing=pack([PROBE.shape[1]]), position_ids=torch.arange(40)[None]).logits
    for value in model.parameters():  # what DeepSpeed trains; the masters stay fp32
        value.data = value.data.to(dtype)
    folder = export(model, masters, tokenizer_folder=tiny_tokenizer, folder=str(tmp_path), dtype=dtype, probe=PROBE)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert loaded.dtype == dtype
    assert loaded.config.use_cache
    with torch.no_grad():
        logits = loaded(input_ids=PROBE).logits.float()
    assert (logits - trained).abs().max() < tolerance * trained.abs().max()
    assert not loaded.generation_config.do_sample
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_tokenizer).chat_template
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_remote_export_is_complete(tiny_tokenizer: str) -> None:
    import fsspec

    model = build_model(ModelSource(config=LLAMA), tiny_tokenizer, seed=1)
    export(model, {}, tokenizer_folder=tiny_tokenizer, folder="memory://runs/a", dtype=torch.float32, probe=PROBE)
    names = {Path(name).name for name in fsspec.filesystem("memory").ls("/runs/a/export", detail=False)}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
