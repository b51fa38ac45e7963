"""Architectures that would mix packed documents are refused before they are built."""

import pytest
import torch
from transformers import CONFIG_MAPPING

from polysome.config import ConfigurationError
from polysome.models import attention
from polysome.models.isolation import check_isolation

LLAMA_3_1_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", LLAMA_3_1_8B),
        ("mistral", {"sliding_window": None}),
        ("gemma", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("qwen3_moe", {}),
        ("glm", {}),
        ("gpt2", {}),
        ("biogpt", {}),
    ],
)
def test_published_sizes_of_families_that_keep_documents_apart(family: str, fields: dict) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check_isolation(CONFIG_MAPPING[family](**fields))
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("family", "fields", "said"),
    [
        ("bloom", {}, "bloom model cannot train on packed rows"),
        ("falcon", {}, "falcon model cannot train on packed rows"),
        ("mamba", {}, "mamba model cannot train on packed rows"),
        ("gemma2", {"sliding_window": None}, "attn_logit_softcapping"),
        ("mistral", {"sliding_window": 64}, "sliding window of 64 tokens"),
        ("llama4_text", {}, "chunked_attention"),
    ],
)
def test_families_that_cannot_are_refused_by_name(family: str, fields: dict, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        check_isolation(CONFIG_MAPPING[family](**fields))


def test_a_leak_between_documents_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attention.pack
    monkeypatch.setattr(attention, "pack", lambda lengths: whole([sum(lengths)]))
    with pytest.raises(ConfigurationError, match="documents in one row see each other"):
        check_isolation(CONFIG_MAPPING["gpt2"]())


def test_positions_that_are_ignored_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.gpt2.modeling_gpt2 import GPT2Model

    forward = GPT2Model.forward
    monkeypatch.setattr(
        GPT2Model, "forward", lambda self, *given, position_ids=None, **named: forward(self, *given, **named)
    )
    with pytest.raises(ConfigurationError, match="documents in one row see each other"):
        check_isolation(CONFIG_MAPPING["gpt2"]())
