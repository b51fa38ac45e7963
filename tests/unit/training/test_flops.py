"""Operations of a step against a count of the operations that torch runs."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from polysome.models import trainability
from polysome.models.trainability import Rule
from polysome.training.flops import flops_per_token

TOKENS = 32


def tiny() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=160,
        attn_implementation="eager",
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def counted(model: torch.nn.Module) -> float:
    """Matrix products per token, counted by torch, which does not know that half of the attention is masked."""
    # Something must ask for the gradient of the first layer's input, as a trained norm before it does.
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, TOKENS, dtype=torch.int64), use_cache=False).logits.sum().backward()
    return counter.get_total_flops() / TOKENS


def unmasked(model: torch.nn.Module) -> float:
    """The other half of the attention: as much as causal attention over documents of TOKENS needs."""
    width = 3 * 32
    return 6.0 * width * TOKENS


def test_full_training() -> None:
    model = tiny()
    trainability.apply(model, [Rule(match=".", mode="full")], seed=1)
    assert abs(flops_per_token(model, document_length=TOKENS).model + unmasked(model) - counted(model)) < 1


def test_lora_pays_no_weight_gradient_of_the_frozen_matrix() -> None:
    model = tiny()
    rules = [Rule(match="_proj$", mode="lora", rank=4, alpha=4), Rule(match="norm$|embed", mode="full")]
    trainability.apply(model, rules, seed=1)
    expected = flops_per_token(model, document_length=TOKENS)
    assert abs(expected.model + unmasked(model) - counted(model)) < 1
    linear = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lora" not in n)
    lora = sum(p.numel() for n, p in model.named_parameters() if "lora" in n)
    assert expected.model == 4 * linear + 6 * lora + 6 * 96 * TOKENS


def test_logits_at_targets_alone_and_recomputation() -> None:
    model = tiny()
    trainability.apply(model, [Rule(match=".", mode="full")], seed=1)
    whole, tenth = (flops_per_token(model, document_length=TOKENS, target_share=share) for share in (1.0, 0.1))
    head = 160 * 32
    assert whole.model - tenth.model == 0.9 * 6 * head
    assert whole.computed(recomputed=True) - whole.model == whole.forward - 2 * head
