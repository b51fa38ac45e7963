"""Isolation: whether an architecture keeps the documents of a packed row apart, decided before it is built."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from polysome.config import ConfigurationError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

_LENGTHS = [5, 3, 4]
_TOLERANCE = 1e-3
"""Of the largest logit. Rounding in fp32 makes 1e-6, a document that sees another one more than 0.1."""


def check_isolation(config: PretrainedConfig) -> None:
    """Refuse what packed attention would compute wrongly.

    Windows and layer types are read from the configuration, since they show in long documents only; a window that no
    document can exceed changes nothing. All else is tried: a copy of the architecture with two small layers and random
    weights must give the same logits for documents in one packed row as, with transformers' own eager attention, for
    each document alone. That finds families whose attention is fixed in their code (BLOOM's ALiBi), that take no
    position ids, or that mix tokens by other means (state spaces, convolutions).

    Raises:
        ConfigurationError: the logits differ, or the architecture cannot run on packed rows at all.
    """
    obstacle = _declared(config) or _tried(config)
    if obstacle:
        raise ConfigurationError(
            f"a {config.model_type} model cannot train on packed rows: {obstacle}",
            where="model",
            fix="use a model with full attention in every layer, for example of the families llama, mistral, gemma, "
            "qwen2, qwen3, glm, gpt2 or biogpt; when training from scratch, set the field that is named to null",
        )


def _declared(config: PretrainedConfig) -> str | None:
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ["sliding_attention"])
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    context = getattr(text, "max_position_embeddings", float("inf"))
    if other := sorted(layers - {"full_attention", "sliding_attention"}):
        return f"it has layers of type {other[0]}"
    if window and "sliding_attention" in layers and window < context:
        return f"it has a sliding window of {window} tokens in a context of {context}"
    if getattr(text, "attn_logit_softcapping", None):
        return f"it has soft-capped attention (attn_logit_softcapping {text.attn_logit_softcapping})"
    return None


def _tried(config: PretrainedConfig) -> str | None:
    import torch

    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            packed, apart = _logits(_shrink(config))
    except Exception as error:  # an architecture may fail in any way of its own; whatever it is, it does not run
        return f"a small copy of it fails with {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if packed.shape != apart.shape:
        return f"it does not give logits at chosen places alone ({packed.shape[0]} where {apart.shape[0]} were asked)"
    difference = (packed - apart).abs().max().item()
    if not difference <= _TOLERANCE * apart.abs().max().item():
        return f"documents in one row see each other: logits differ by {difference:.2g} from those of each one alone"
    return None


def _shrink(config: PretrainedConfig) -> Any:
    """The same architecture with two narrow layers; the head dimension stays, since rotary settings depend on it."""
    small: Any = copy.deepcopy(config.get_text_config())
    layers, heads = small.num_hidden_layers, small.num_attention_heads
    head_dim = getattr(small, "head_dim", None) or small.hidden_size // heads
    for name, value in list(vars(small).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(small, name, value[:2])
    sizes = {
        "num_hidden_layers": min(layers, 2),
        "num_attention_heads": 2,
        "num_key_value_heads": 2 if getattr(small, "num_key_value_heads", None) in (None, heads) else 1,
        "hidden_size": 2 * head_dim,
        "head_dim": head_dim,
        "intermediate_size": 32,
        "moe_intermediate_size": 32,
        "vocab_size": 16,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    for name, size in sizes.items():
        if hasattr(small, name):
            setattr(small, name, size)
    return small


def _logits(config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [places, vocabulary] of a packed row, and of its documents one by one."""
    import torch
    from transformers import AutoModelForCausalLM

    from polysome.models.attention import ATTENTION, pack, register

    register()
    packing, eager = (
        # A copy for each: some families keep the very object, and with it the attention that was asked for last.
        AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32, attn_implementation=attention)
        for attention in (ATTENTION, "eager")
    )
    for parameter in packing.parameters():
        # Large enough for every layer to matter; the usual initial weights would hide a leak in rounding.
        parameter.add_(torch.randn_like(parameter) * (parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1))
    eager.load_state_dict(packing.state_dict())
    input_ids = torch.randint(1, 16, (1, sum(_LENGTHS)))
    places = torch.tensor([0, 3, 4, 5, 7, 8, 11])
    packed = packing.eval()(
        input_ids=input_ids,
        position_ids=torch.cat([torch.arange(length) for length in _LENGTHS])[None],
        use_cache=False,
        logits_to_keep=places,
        packing=pack(_LENGTHS),
    ).logits[0]
    apart = [eager.eval()(input_ids=part, use_cache=False).logits[0] for part in input_ids.split(_LENGTHS, dim=1)]
    return packed, torch.cat(apart)[places]
