"""Which parameters train under the three published stages (A-93, A-94), and how rules are refused."""

import logging

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from polysome.config import ConfigurationError
from polysome.models.trainability import Rule, apply, choose, merge, table

STAGE_1 = [
    Rule(match=r"(q|k|v|o|gate|up|down)_proj$", mode="lora", rank=128, alpha=32),
    Rule(match=r"norm$", mode="full"),
]
STAGE_2 = [
    Rule(match=r"(q|k)_proj$", mode="full"),
    Rule(match=r"(v|o|gate|up|down)_proj$", mode="lora", rank=64, alpha=32),
    Rule(match=r"norm$", mode="full"),
]
STAGE_3 = [Rule(match=r"embed_tokens$|lm_head$", mode="frozen"), Rule(match=r".", mode="full")]

HIDDEN, INNER, KV, LAYERS, VOCABULARY = 32, 48, 16, 2, 100
NORMS = (2 * LAYERS + 1) * HIDDEN
ATTENTION = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV)
MLP = LAYERS * 3 * HIDDEN * INNER


def tiny_llama(**changes) -> LlamaForCausalLM:
    fields = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
    }
    return LlamaForCausalLM(LlamaConfig(**{**fields, **changes}))


def low_rank(rank: int, shapes: list[tuple[int, int]]) -> int:
    return LAYERS * rank * sum(a + b for a, b in shapes)


SQUARE, KEY, GATE = (HIDDEN, HIDDEN), (HIDDEN, KV), (HIDDEN, INNER)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (STAGE_1, low_rank(128, [SQUARE, KEY, KEY, SQUARE, GATE, GATE, GATE]) + NORMS),
        (
            STAGE_2,
            LAYERS * (HIDDEN * HIDDEN + HIDDEN * KV) + low_rank(64, [KEY, SQUARE, GATE, GATE, GATE]) + NORMS,
        ),
        (STAGE_3, ATTENTION + MLP + NORMS),
    ],
)
def test_exactly_the_published_parameters_train(rules: list[Rule], expected: int) -> None:
    model = tiny_llama()
    choices = apply(model, rules, seed=1)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert sum(value.numel() for value in trained.values()) == expected
    assert sum(choice.trainable for choice in choices) == expected
    assert not any("embed_tokens" in name or "lm_head" in name for name in trained)
    assert sum(row["trainable"] for row in table(choices, {})) == expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (STAGE_1, {"lora": 335_544_320, "full": 266_240}),
        (
            [Rule(match=r"(q|k|v|o)_proj$", mode="lora", rank=128, alpha=32)],
            {"lora": 109_051_904, "full": 0},
        ),
        (STAGE_2, {"lora": 140_509_184, "full": 671_088_640 + 266_240}),
    ],
)
def test_counts_of_llama_3_1_8b(rules: list[Rule], expected: dict[str, int]) -> None:
    with torch.device("meta"):
        model = tiny_llama(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=128256,
        )
    choices = choose(model, rules)
    for mode, count in expected.items():
        assert sum(choice.trainable for choice in choices if choice.mode == mode) == count
    assert sum(choice.parameters for choice in choices) == 8_030_261_248


def test_lora_starts_as_the_identity_and_merges_exactly() -> None:
    torch.manual_seed(0)
    model = tiny_llama().eval()
    input_ids = torch.randint(0, VOCABULARY, (1, 12))
    before = model(input_ids=input_ids).logits
    apply(model, STAGE_2, seed=1)
    torch.testing.assert_close(model(input_ids=input_ids).logits, before)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    trained = model(input_ids=input_ids).logits
    assert (trained - before).abs().max() > 1e-3
    merge(model)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in tiny_llama().named_parameters()]
    torch.testing.assert_close(model(input_ids=input_ids).logits, trained, atol=1e-5, rtol=1e-5)


def test_rules_keep_their_own_rank_scaling_and_dropout() -> None:
    model = tiny_llama()
    apply(
        model,
        [
            Rule(match=r"q_proj$", mode="lora", rank=4, alpha=8, dropout=0.5),
            Rule(match=r"v_proj$", mode="lora", rank=16, alpha=8, rank_stabilized=True),
        ],
        seed=1,
    )
    layer = model.model.layers[0].self_attn
    assert (layer.q_proj.r, layer.q_proj.scaling) == ({"default": 4}, {"default": 2.0})
    assert (layer.v_proj.r, layer.v_proj.scaling) == ({"default": 16}, {"default": 2.0})
    assert layer.q_proj.lora_dropout["default"].p == 0.5


def test_a_small_alpha_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        apply(tiny_llama(), STAGE_1, seed=1)
    assert "alpha 32 is below rank 128" in caplog.text


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([Rule(match="qkv_proj", mode="full")], "matches no module"),
        ([Rule(match="q_proj", mode="full"), Rule(match="q_proj$", mode="frozen")], "decides nothing"),
        ([Rule(match="norm", mode="lora", rank=4, alpha=4)], "LoRA is for linear layers"),
        ([Rule(match="norm", mode="frozen")], "no module trains"),
    ],
)
def test_rules_that_do_not_do_what_they_say_are_refused(rules: list[Rule], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        choose(tiny_llama(), rules)


def test_tied_weights_are_counted_once_and_never_half_frozen() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    with pytest.raises(ConfigurationError, match="share one weight"):
        choose(model, [Rule(match="lm_head", mode="full")])
    choices = choose(model, [Rule(match=".", mode="full")])
    assert sum(choice.trainable for choice in choices) == sum(value.numel() for value in model.parameters())
