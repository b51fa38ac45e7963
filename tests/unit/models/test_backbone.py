"""Backbones from a configuration and from a folder."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from polysome.config import ConfigurationError, DataError
from polysome.models.backbone import ModelSource, build_model

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def test_scratch_model_takes_vocabulary_and_special_tokens_from_the_tokenizer(tiny_tokenizer: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    model = build_model(ModelSource(config=LLAMA), tiny_tokenizer, seed=1)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert not model.config.use_cache
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("told_by", ["config.json", "tokenizer_config.json"])
def test_a_model_needs_no_row_for_a_token_that_transformers_would_add(
    told_by: str, tiny_tokenizer: str, tmp_path
) -> None:
    """To the tokenizer of a qwen2 model AutoTokenizer adds a token that tokenizer.json does not hold."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = shutil.copytree(tiny_tokenizer, tmp_path / "model")
    scratch = build_model(ModelSource(config={**LLAMA, "model_type": "qwen2"}), str(folder), seed=1)
    if told_by == "config.json":
        scratch.save_pretrained(folder)
    else:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "Qwen2Tokenizer"}))
    entries = len(PreTrainedTokenizerFast.from_pretrained(folder))
    assert len(AutoTokenizer.from_pretrained(folder)) == entries + 1
    source = ModelSource(config=LLAMA) if told_by == "tokenizer_config.json" else ModelSource(path=str(folder))
    assert build_model(source, str(folder), seed=1).config.vocab_size == entries


def test_weights_follow_the_seed_and_leave_the_global_generator_alone(tiny_tokenizer: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    models = [build_model(ModelSource(config=LLAMA), tiny_tokenizer, seed=seed) for seed in (1, 1, 2)]
    assert torch.rand(1) == expected
    weights = [model.lm_head.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_folder_gives_back_the_saved_model(tiny_tokenizer: str, tmp_path) -> None:
    model = build_model(ModelSource(config=LLAMA), tiny_tokenizer, seed=1)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = build_model(ModelSource(path=str(tmp_path)), tiny_tokenizer, seed=9)
    for (name, saved), (other, read) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(saved.float(), read)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({**LLAMA, "vocab_size": 10}, "only 10 rows"),
        ({**LLAMA, "hidden_sise": 16}, "hidden_size"),
        ({**LLAMA, "model_type": "lama"}, "llama"),
    ],
)
def test_impossible_configurations_are_refused(fields, said: str, tiny_tokenizer: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        build_model(ModelSource(config=fields), tiny_tokenizer, seed=1)


def test_pickled_weights_and_absent_folders_are_refused(tiny_tokenizer: str, tmp_path) -> None:
    model = build_model(ModelSource(config=LLAMA), tiny_tokenizer, seed=1)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="safetensors"):
        build_model(ModelSource(path=str(tmp_path)), tiny_tokenizer, seed=1)
    with pytest.raises(ConfigurationError, match="nowhere"):
        build_model(ModelSource(path=str(tmp_path / "nowhere")), tiny_tokenizer, seed=1)


@pytest.mark.parametrize("model_type", ["llama", "chatglm"])
def test_a_folder_with_code_of_its_own_is_refused_and_the_code_not_run(
    model_type: str, tiny_tokenizer: str, tmp_path
) -> None:
    build_model(ModelSource(config=LLAMA), tiny_tokenizer, seed=1).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    code = {"AutoConfig": "code.Settings", "AutoModelForCausalLM": "code.Model"}
    (tmp_path / "config.json").write_text(json.dumps({**settings, "model_type": model_type, "auto_map": code}))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigurationError, match="auto_map: AutoConfig, AutoModelForCausalLM"):
        build_model(ModelSource(path=str(tmp_path)), tiny_tokenizer, seed=1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "mistral", "sliding_window": 64}, "sliding window of 64 tokens"),
        ({"model_type": "gemma2", "head_dim": 8, "sliding_window": None}, "attn_logit_softcapping"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}, "sliding"),
    ],
)
@pytest.mark.parametrize("meta", [True, False])
def test_attention_that_packing_does_not_compute_is_refused(fields, said: str, meta: bool, tiny_tokenizer: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        build_model(ModelSource(config={**LLAMA, **fields}), tiny_tokenizer, seed=1, meta=meta)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "mistral", "sliding_window": 128, "max_position_embeddings": 128},
        {"model_type": "qwen2"},
    ],
)
def test_a_window_that_no_document_exceeds_is_none(fields, tiny_tokenizer: str) -> None:
    assert build_model(ModelSource(config={**LLAMA, **fields}), tiny_tokenizer, seed=1, meta=True)


@pytest.fixture
def saved(tiny_tokenizer: str, tmp_path):
    build_model(ModelSource(config=LLAMA), tiny_tokenizer, seed=1).save_pretrained(tmp_path)
    return tmp_path


def test_a_missing_weight_is_refused_unless_it_is_tied(saved, tiny_tokenizer: str) -> None:
    weights = load_file(saved / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"1 weights are missing, the first is lm_head\.weight"):
        build_model(ModelSource(path=str(saved)), tiny_tokenizer, seed=1)
    settings = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": True}))
    model = build_model(ModelSource(path=str(saved)), tiny_tokenizer, seed=1)
    assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"])


def test_weights_of_another_shape_and_a_file_cut_short_are_refused(saved, tiny_tokenizer: str) -> None:
    settings = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**settings, "intermediate_size": 48}))
    with pytest.raises(DataError, match="3 weights have another shape"):
        build_model(ModelSource(path=str(saved)), tiny_tokenizer, seed=1)
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="broken"):
        build_model(ModelSource(path=str(saved)), tiny_tokenizer, seed=1)
