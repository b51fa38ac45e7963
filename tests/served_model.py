"""A tiny Llama with random weights, written as a stage exports it."""

from pathlib import Path
from typing import Any


def write_llama(folder: Path, tokenizer: str, **fields: Any) -> str:
    """Write the model and the tokenizer of a folder that it fits; `fields` change its configuration."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {f"{name}_token_id": getattr(loaded, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = LlamaConfig(vocab_size=len(loaded), num_key_value_heads=2, **sizes, **ids, **fields)
    LlamaForCausalLM(config).save_pretrained(folder)
    loaded.save_pretrained(folder)
    return str(folder)
