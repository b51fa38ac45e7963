"""Which parameters train under the published stages (A-93, A-94), in which families, and how rules are refused."""

import logging
from collections import Counter

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from polysome.config import ConfigurationError
from polysome.models.trainability import Rule, apply, choose, merge, role, token_matrices

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
    by_role: Counter = Counter()
    for name, value in trained.items():
        by_role[role(name, value, token_matrices(model))] += value.numel()
    assert by_role == sum((Counter(choice.trains) for choice in choices), Counter())


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


LLAMA_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "vocab_size": 32000,
}  # fmt: skip
LLAMA_13B = {
    "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
    "vocab_size": 32000,
}  # fmt: skip
MISTRAL_7B = {**LLAMA_7B, "intermediate_size": 14336, "num_key_value_heads": 8}
GEMMA_7B = {
    "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 16, "head_dim": 256, "vocab_size": 256000,
}  # fmt: skip
QWEN2_7B = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064,
}  # fmt: skip
GLM_4_9B = {
    "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40, "num_attention_heads": 32,
    "num_key_value_heads": 2, "head_dim": 128, "attention_bias": True, "vocab_size": 151552,
}  # fmt: skip
BLOOM_7B1 = {"hidden_size": 4096, "n_layer": 30, "n_head": 32, "vocab_size": 250880}


@pytest.mark.parametrize(
    ("family", "fields", "match", "lora", "total"),
    [
        ("llama", LLAMA_7B, r"(q|v)_proj$", 4_194_304, 6_738_415_616),
        ("llama", LLAMA_13B, r"(q|v)_proj$", 6_553_600, 13_015_864_320),
        ("mistral", MISTRAL_7B, r"(q|v)_proj$", 3_407_872, 7_241_732_096),
        ("gpt2", {}, r"c_attn$", 294_912, 124_439_808),
        ("biogpt", {}, r"(q|v)_proj$", 786_432, 346_763_264),
        ("bloom", BLOOM_7B1, r"query_key_value$", 3_932_160, 7_069_016_064),
        ("gemma", GEMMA_7B, r"(q|v)_proj$", 28 * 8 * 2 * (3072 + 4096), 8_537_680_896),
        ("qwen2", QWEN2_7B, r"(q|v)_proj$", 28 * 8 * (3584 + 3584 + 3584 + 512), 7_615_616_512),
        ("glm", GLM_4_9B, r"(q|v)_proj$", 40 * 8 * (4096 + 4096 + 4096 + 256), 9_399_951_360),
    ],
)
def test_lora_counts_of_published_models_at_rank_8(
    family: str, fields: dict, match: str, lora: int, total: int
) -> None:
    """F-8; Gemma, Qwen and GLM from their published sizes."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**fields))
    choices = choose(model, [Rule(match=match, mode="lora", rank=8, alpha=16)])
    assert sum(choice.trainable for choice in choices) == lora
    assert sum(choice.parameters for choice in choices) == total


def chatglm_6b() -> torch.nn.Module:
    """ChatGLM-6B, second and third generation, by its published sizes and module names; not one of transformers."""
    hidden, inner, layers, vocabulary = 4096, 13696, 28, 65024

    def layer() -> torch.nn.Module:
        attention = torch.nn.Module()
        attention.query_key_value = torch.nn.Linear(hidden, hidden + 2 * 2 * 128)
        attention.dense = torch.nn.Linear(hidden, hidden, bias=False)
        mlp = torch.nn.Module()
        mlp.dense_h_to_4h = torch.nn.Linear(hidden, 2 * inner, bias=False)
        mlp.dense_4h_to_h = torch.nn.Linear(inner, hidden, bias=False)
        made = torch.nn.Module()
        made.input_layernorm = torch.nn.RMSNorm(hidden)
        made.self_attention = attention
        made.post_attention_layernorm = torch.nn.RMSNorm(hidden)
        made.mlp = mlp
        return made

    model = torch.nn.Module()
    model.transformer = torch.nn.Module()
    model.transformer.embedding = torch.nn.Module()
    model.transformer.embedding.word_embeddings = torch.nn.Embedding(vocabulary, hidden)
    model.transformer.encoder = torch.nn.Module()
    model.transformer.encoder.layers = torch.nn.ModuleList(layer() for _ in range(layers))
    model.transformer.encoder.final_layernorm = torch.nn.RMSNorm(hidden)
    model.transformer.output_layer = torch.nn.Linear(hidden, vocabulary, bias=False)
    return model


def test_lora_count_of_chatglm_6b_at_rank_8() -> None:
    """F-8."""
    with torch.device("meta"):
        model = chatglm_6b()
    choices = choose(model, [Rule(match=r"query_key_value$", mode="lora", rank=8, alpha=32)])
    assert sum(choice.trainable for choice in choices) == 1_949_696
    assert sum(choice.parameters for choice in choices) == 6_243_584_000


GPT2_RULES = [
    Rule(match=r"c_attn$", mode="lora", rank=4, alpha=8),
    Rule(match=r"c_fc$", mode="lora", rank=4, alpha=8, dora=True),
    Rule(match=r"ln_", mode="full"),
]
DORA_RULES = [
    Rule(match=r"(q|k)_proj$", mode="full"),
    Rule(match=r"(v|o)_proj$", mode="lora", rank=4, alpha=8, dora=True),
    Rule(match=r"_proj$", mode="lora", rank=16, alpha=8, scaling="alpha/sqrt(r)", dora=True),
]


def tiny_gpt2() -> torch.nn.Module:
    config = CONFIG_MAPPING["gpt2"](n_embd=HIDDEN, n_layer=LAYERS, n_head=4, vocab_size=VOCABULARY)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(("made", "rules"), [(tiny_llama, STAGE_2), (tiny_llama, DORA_RULES), (tiny_gpt2, GPT2_RULES)])
def test_lora_starts_as_the_identity_and_merges_exactly(made, rules: list[Rule]) -> None:
    torch.manual_seed(0)
    model = made().eval()
    names = [name for name, _ in model.named_parameters()]
    input_ids = torch.randint(0, VOCABULARY, (1, 12))
    before = model(input_ids=input_ids).logits
    choices = apply(model, rules, seed=1)
    torch.testing.assert_close(model(input_ids=input_ids).logits, before)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert sum(value.numel() for value in trained.values()) == sum(choice.trainable for choice in choices)
    with torch.no_grad():
        for name, value in trained.items():
            if "lora_B" in name:
                value.normal_(std=0.1)
            if "lora_magnitude_vector" in name:
                value.mul_(torch.rand_like(value) + 0.5)
    changed = model(input_ids=input_ids).logits
    assert (changed - before).abs().max() > 1e-3
    merge(model)
    assert [name for name, _ in model.named_parameters()] == names
    torch.testing.assert_close(model(input_ids=input_ids).logits, changed, atol=1e-5, rtol=1e-5)


def test_dora_trains_the_length_of_every_row_as_a_vector() -> None:
    model = tiny_llama()
    weight = model.model.layers[0].self_attn.v_proj.weight.detach().clone()
    choices = apply(model, DORA_RULES, seed=1)
    name = "model.layers.0.self_attn.v_proj.lora_magnitude_vector.default.weight"
    magnitude = dict(model.named_parameters())[name]
    assert magnitude.requires_grad
    assert role(name, magnitude, token_matrices(model)) == "norm"
    torch.testing.assert_close(magnitude.detach(), weight.norm(dim=1))
    (choice,) = (choice for choice in choices if choice.module == "model.layers.0.self_attn.v_proj")
    assert choice.trains == {"base": 4 * HIDDEN, "lora_b": 4 * KV, "norm": KV}


def test_rules_keep_their_own_rank_scaling_and_dropout() -> None:
    model = tiny_llama()
    apply(
        model,
        [
            Rule(match=r"q_proj$", mode="lora", rank=4, alpha=8, dropout=0.5),
            Rule(match=r"v_proj$", mode="lora", rank=16, alpha=8, scaling="alpha/sqrt(r)"),
        ],
        seed=1,
    )
    layer = model.model.layers[0].self_attn
    assert (layer.q_proj.r, layer.q_proj.scaling) == ({"default": 4}, {"default": 2.0})
    assert (layer.v_proj.r, layer.v_proj.scaling) == ({"default": 16}, {"default": 2.0})
    assert layer.q_proj.lora_dropout["default"].p == 0.5


def test_a_small_alpha_is_warned_of_unless_rank_stabilized(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        choose(tiny_llama(), [Rule(match="q_proj", mode="lora", rank=128, alpha=32, scaling="alpha/sqrt(r)")])
        assert not caplog.text
        choose(tiny_llama(), STAGE_1)
    assert "alpha 32 is below rank 128" in caplog.text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mode": "lora", "rank": 4}, "rank and alpha"),
        ({"mode": "full", "dora": True}, "dora: only mode lora"),
        ({"mode": "frozen", "rank": 4, "alpha": 4}, "alpha, rank: only mode lora"),
        ({"mode": "lora", "rank": 4, "alpha": 4, "scaling": "alpha"}, "alpha/sqrt"),
        ({"mode": "full", "match": "("}, "regular expression"),
    ],
)
def test_incomplete_and_contradictory_rules_are_refused(fields: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Rule(**{"match": "q_proj", **fields})


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
    total = sum(value.numel() for value in model.parameters())
    assert sum(choice.trainable for choice in choices) == sum(choice.parameters for choice in choices) == total
