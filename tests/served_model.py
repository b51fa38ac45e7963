"""A tiny Llama with random weights, and adapters of it, written as a stage exports them."""

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


def write_lora(base: str, folder: Path, *, seed: int) -> str:
    """Write an adapter of a model folder whose matrices are not zero, as training writes it."""
    import torch
    from transformers import AutoModelForCausalLM

    from polysome.models.trainability import Rule, apply
    from polysome.training.adapter import write_adapter

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    apply(
        model, [Rule(match="q_proj|up_proj", mode="lora", rank=4, alpha=4.0), Rule(match=".", mode="frozen")], seed=seed
    )
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.2 * torch.randn_like(value))
    assert write_adapter(model, str(folder), base=base)
    return str(folder)
