"""Adapters compute what was trained, read by PEFT itself, and on their own base alone."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from trained_models import GPT2, LLAMA, MIXED, QWEN, logits, trained
from transformers import AutoModelForCausalLM

from polysome.config import ConfigurationError, DataError
from polysome.models.adapter import check_base
from polysome.models.backbone import ModelSource, build_model
from polysome.models.trainability import Rule
from polysome.training.adapter import load_adapter, write_adapter

TIED = [Rule(match="embed_tokens|lm_head|wte|norm|ln_", mode="full"),
        Rule(match="_proj|c_attn|c_proj", mode="lora", rank=4, alpha=8)]  # fmt: skip
DORA_BESIDE_LORA = [Rule(match="q_proj", mode="lora", rank=4, alpha=8, dora=True),
                    Rule(match="_proj", mode="lora", rank=3, alpha=8)]  # fmt: skip


def base(config: dict, tokenizer: str, folder: Path, *, seed: int = 1) -> str:
    """A base model as a plain folder."""
    build_model(ModelSource(config=config), tokenizer, seed=seed).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("config", "rules"), [(LLAMA, MIXED), (QWEN, TIED), (GPT2, TIED), (LLAMA, DORA_BESIDE_LORA)])
def test_peft_computes_exactly_what_was_trained(config: dict, rules: list, tiny_tokenizer: str, tmp_path: Path) -> None:
    source = base(config, tiny_tokenizer, tmp_path / "base")
    model, _, _ = trained(source, tiny_tokenizer, rules)
    model.set_attn_implementation("sdpa")  # the same kernel as the plain model's, so that equal means equal
    assert write_adapter(model, str(tmp_path / "adapter"), base=source)
    plain = AutoModelForCausalLM.from_pretrained(source)
    assert (logits(plain) - logits(model)).abs().max() > 0.01
    loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded), logits(model))
    merged = load_adapter(source, str(tmp_path / "adapter")).merge_and_unload()
    assert (logits(merged) - logits(model)).abs().max() < 1e-5


def test_one_dropout_is_kept_and_mixed_ones_are_not(tiny_tokenizer: str, tmp_path: Path) -> None:
    written = {}
    one = [Rule(match="_proj", mode="lora", rank=4, alpha=8, dropout=0.1)]
    for name, rules in {"one": one, "mixed": MIXED}.items():
        model, _, _ = trained(LLAMA, tiny_tokenizer, rules)
        write_adapter(model, str(tmp_path / name), base=None)
        written[name] = json.loads((tmp_path / name / "adapter_config.json").read_text())["lora_dropout"]
    assert written == {"one": 0.1, "mixed": 0.0}


def test_another_base_is_refused_by_shape_and_by_weights(tiny_tokenizer: str, tmp_path: Path) -> None:
    source = base(LLAMA, tiny_tokenizer, tmp_path / "base")
    model, _, _ = trained(source, tiny_tokenizer, MIXED)
    adapter = str(tmp_path / "adapter")
    write_adapter(model, adapter, base=source)
    for changed, said in [
        ({"intermediate_size": 48}, "has shape .* it needs"),
        ({"num_hidden_layers": 1}, "weights that have no place here"),
    ]:
        other = build_model(ModelSource(config=LLAMA | changed), tiny_tokenizer, seed=1)
        with pytest.raises(ConfigurationError, match=said) as raised:
            check_base(other, adapter)
        assert source in str(raised.value)
    with pytest.raises(ConfigurationError, match="belongs to another base") as raised:
        load_adapter(base(LLAMA, tiny_tokenizer, tmp_path / "other", seed=2), adapter)
    assert source in str(raised.value)
    with pytest.raises(DataError, match=r"adapter_config\.json is missing"):
        load_adapter(source, source)


def test_a_base_is_known_in_any_precision_and_without_what_the_adapter_brings(
    tiny_tokenizer: str, tmp_path: Path
) -> None:
    model, _, _ = trained(LLAMA, tiny_tokenizer, MIXED)
    adapter = str(tmp_path / "adapter")
    write_adapter(model, adapter, base=None)
    same = build_model(ModelSource(config=LLAMA), tiny_tokenizer, seed=1).to(torch.bfloat16)
    same.model.norm.weight.data += 1  # trained in full: the adapter holds its own
    check_base(same, adapter)
    same.model.embed_tokens.weight.data[5, 5] += 1
    with pytest.raises(ConfigurationError, match=r"differ, the first is model.embed_tokens.weight"):
        check_base(same, adapter)


def test_what_peft_cannot_say_is_refused(tiny_tokenizer: str, tmp_path: Path) -> None:
    model, _, _ = trained(LLAMA, tiny_tokenizer, [Rule(match="v_proj", mode="lora", rank=4, alpha=8)])
    model.model.layers[0].self_attn.register_parameter("gate", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(ConfigurationError, match=r"layers\.0\.self_attn, trained in full, with .*v_proj"):
        write_adapter(model, str(tmp_path / "adapter"), base=None)
    full, _, _ = trained(LLAMA, tiny_tokenizer, [Rule(match="norm", mode="full")])
    assert not write_adapter(full, str(tmp_path / "adapter"), base=None)
    assert not (tmp_path / "adapter").exists()
