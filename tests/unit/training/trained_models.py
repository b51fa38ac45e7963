"""Tiny random models that look trained: every trainable weight moved, the fp32 masters beside them."""

import torch
from transformers import PreTrainedModel

from polysome.models.attention import pack
from polysome.models.backbone import ModelSource, build_model
from polysome.models.trainability import Rule, apply

LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4}
QWEN = {**LLAMA, "model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True}
GEMMA = {**LLAMA, "model_type": "gemma", "head_dim": 8, "num_key_value_heads": 1}
PROBE = torch.arange(20, 60)[None]

MIXED = [
    Rule(match="q_proj|norm", mode="full"),
    Rule(match="v_proj", mode="lora", rank=4, alpha=8),
    Rule(match="up_proj", mode="lora", rank=6, alpha=8, scaling="alpha/sqrt(r)", dropout=0.1),
    Rule(match="_proj", mode="lora", rank=3, alpha=4),
]
"""Full, LoRA of several ranks, alphas and scalings, and frozen."""


def move(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Change every trainable parameter; returns them by name, in fp32."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.05 * torch.randn_like(value))
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def trained(
    source: dict | str, tokenizer: str, rules: list[Rule]
) -> tuple[PreTrainedModel, dict[str, torch.Tensor], torch.Tensor]:
    """A model with its rules applied and moved weights, the masters, and its logits on PROBE."""
    source = ModelSource(path=source) if isinstance(source, str) else ModelSource(config=source)
    model = build_model(source, tokenizer, seed=1).eval()
    apply(model, rules, seed=1)
    masters = move(model.eval())
    return model, masters, packed_logits(model)


def packed_logits(model: PreTrainedModel) -> torch.Tensor:
    """Of a model with packed attention."""
    with torch.no_grad():
        return model(
            input_ids=PROBE, packing=pack([PROBE.shape[1]]), position_ids=torch.arange(PROBE.shape[1])[None]
        ).logits


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Of a plain model, on PROBE."""
    with torch.no_grad():
        return model(input_ids=PROBE).logits.float()
