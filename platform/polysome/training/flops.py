"""Floating-point operations of a training step: what the model needs, by what trains of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TokenFlops:
    """Operations per unpadded token; a multiplication and an addition count as two.

    Attributes:
        forward: of the layers and the output layer.
        backward: gradients of activations, and of the weights that train.
        layers_forward: the part of `forward` inside the layers, which gradient checkpointing computes twice.
    """

    forward: float
    backward: float
    layers_forward: float

    @property
    def model(self) -> float:
        """What the model needs, the numerator of MFU; recomputation does not count (PaLM, arXiv 2204.02311, app. B)."""
        return self.forward + self.backward

    def computed(self, *, recomputed: bool) -> float:
        """What the device computes; with gradient checkpointing the layers' forward pass once more."""
        return self.model + (self.layers_forward if recomputed else 0.0)


def flops_per_token(model: torch.nn.Module, *, document_length: float, target_share: float = 1.0) -> TokenFlops:
    """Operations per token of a causal language model in which exactly what trains requires gradients.

    A weight matrix of P elements costs 2P forward, 2P for the gradient of its input and, only where it trains, 2P for
    its own: 6 per parameter trained in full, 4 per frozen one, and 6 per parameter of LoRA beside it. Causal attention
    within documents costs 2 d n forward and 4 d n backward per layer and token, for heads of d elements together and
    documents of n tokens; only the half below the diagonal counts. Norms, activations and embeddings are left out.

    Args:
        model: of transformers, on any device (meta included), with or without LoRA layers.
        document_length: mean length of the document that a token stands in, sum(n^2) / sum(n).
        target_share: share of tokens whose logits are computed.
    """
    import torch

    causal: Any = model
    head = causal.get_output_embeddings()
    inside = outside = trained = 0.0
    for module in model.modules():
        weight = getattr(module, "_parameters", {}).get("weight")
        if weight is None or weight.ndim != 2 or isinstance(module, torch.nn.Embedding):
            continue
        share = target_share if module is head else 1.0
        operations = 2.0 * weight.numel() * share
        if module is head:
            outside += operations
        else:
            inside += operations
        trained += operations if weight.requires_grad else 0.0
    attention = 2.0 * _attention_width(model) * document_length
    forward = inside + outside + attention
    return TokenFlops(forward, forward + trained + attention, inside + attention)


def _attention_width(model: torch.nn.Module) -> float:
    """Elements of all query heads of all layers."""
    found: Any = getattr(model, "config", None)
    config = found.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return float(config.num_hidden_layers * heads * width)
