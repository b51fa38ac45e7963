"""Tiny random models in folders, with weights large enough to make what they say differ."""

import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from polysome.data.tokenizer_files import load_tokenizer
from polysome.models.tokenizer import build_per_base_tokenizer

CONTEXT = 96
WIDE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.5,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **WIDE},
    "mistral": {"model_type": "mistral", "sliding_window": None, **WIDE},
    "mistral, window 24": {"model_type": "mistral", "sliding_window": 24, **WIDE},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, **WIDE},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": CONTEXT,
        "initializer_range": 0.5,
    },
    # Its window counts from the end of the longest row of a batch.
    "gpt_neo": {
        "model_type": "gpt_neo",
        "hidden_size": 32,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "num_heads": 4,
        "window_size": 24,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.5,
    },
    # Takes no position ids.
    "bloom": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.5},
}


def build_model(folder: Path, kind: str = "llama", *, seed: int = 7, dtype: Any = None, **changes: Any) -> str:
    """Write a model folder; many tokens end the turn, so that answers have many lengths and rows leave their batch."""
    build_per_base_tokenizer(folder, ["is there a promoter? yes no"])
    tokenizer = load_tokenizer(folder)
    fields = {**CONFIGS[kind], **changes}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(fields.pop("model_type"), vocab_size=len(tokenizer), **fields, **ids)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(30, 60)]
    model.save_pretrained(folder)
    return str(folder)


def conversations(count: int, seed: int = 0) -> list[list[dict[str, str]]]:
    """Questions of 1 to 60 bases."""
    draw = random.Random(seed)
    return [[{"role": "user", "content": "".join(draw.choices("ACGT", k=draw.randint(1, 60)))}] for _ in range(count)]
