"""The stages that `gpu.py` measures: models, rows and rules of A-93."""

from dataclasses import dataclass
from typing import Any

LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
LLAMA_8B = LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
LLAMA_1B = LLAMA | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
LINEAR = "(q|k|v|o|gate|up|down)_proj$"
NORMS = {"match": "norm$", "mode": "full"}


@dataclass(frozen=True)
class Case:
    """One stage.

    Attributes:
        model: fields of its configuration.
        max_length: positions in a row (A-93).
        rules: what trains.
        optimizer: learning rate and LoRA+ ratio.
    """

    model: dict[str, Any]
    max_length: int
    rules: list[dict[str, Any]]
    optimizer: dict[str, float]


CASES = {
    "stage1": Case(
        LLAMA_8B,
        1200,
        [{"match": LINEAR, "mode": "lora", "rank": 128, "alpha": 32}, NORMS],
        {"learning_rate": 1e-4, "lora_plus_ratio": 4, "epsilon": 1e-9},
    ),
    "stage2": Case(
        LLAMA_8B,
        1024,
        [
            {"match": "(q|k)_proj$", "mode": "full"},
            {"match": "(v|o|gate|up|down)_proj$", "mode": "lora", "rank": 64, "alpha": 32},
            NORMS,
        ],
        {"learning_rate": 1e-4, "lora_plus_ratio": 16},
    ),
    "stage3": Case(
        LLAMA_1B,
        1024,
        [{"match": "embed_tokens$|lm_head$", "mode": "frozen"}, {"match": ".", "mode": "full"}],
        {"learning_rate": 1e-5},
    ),
}
