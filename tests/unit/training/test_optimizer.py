"""Parameter groups by role, the table of what trains, and the choice of AdamW."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from polysome.config import ResourceError
from polysome.models.trainability import Rule, apply, choose
from polysome.training import native, optimizer
from polysome.training.config import Optimizer

RULES = [
    Rule(match=r"(q|k)_proj$", mode="full"),
    Rule(match=r"_proj$", mode="lora", rank=2, alpha=2),
    Rule(match=r"norm$", mode="full"),
]
CONFIG = Optimizer(learning_rate=1e-4, lora_plus_ratio=16, weight_decay=5e-4)


def model(rules: list[Rule] = RULES) -> LlamaForCausalLM:
    made = LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=11)
    )
    apply(made, rules, seed=1)
    return made


def test_groups_hold_every_trainable_parameter_once_by_role() -> None:
    made = model()
    plan = optimizer.groups(made, CONFIG)
    assert {group.role: (group.learning_rate, group.weight_decay) for group in plan} == {
        "base": (1e-4, 5e-4),
        "lora_b": (pytest.approx(1.6e-3), 5e-4),
        "full": (1e-4, 5e-4),
        "norm": (1e-4, 0.0),
    }
    names = [name for group in plan for name in group.names]
    assert sorted(names) == sorted(name for name, value in made.named_parameters() if value.requires_grad)


@pytest.mark.parametrize(("ratio", "expected"), [(4, 4e-4), (16, 1.6e-3)])
def test_lora_plus_rates_of_the_paper(ratio: float, expected: float) -> None:
    """F-9: base 1e-4, B 4e-4 in stage 1 and 1.6e-3 in stage 2."""
    rates = optimizer.rates(CONFIG.model_copy(update={"lora_plus_ratio": ratio}))
    assert rates.pop("lora_b").learning_rate == pytest.approx(expected)
    assert {rate.learning_rate for rate in rates.values()} == {1e-4}


def test_defect_11_every_parameter_has_the_rate_of_its_own_role() -> None:
    """LoRA+ beside matrices trained in full, norms and DoRA: each parameter of the built optimizer, by identity."""
    made = model([Rule(match=r"v_proj$", mode="lora", rank=2, alpha=2, dora=True), *RULES])
    built = optimizer.build(dict(made.named_parameters()), optimizer.groups(made, CONFIG), CONFIG, "adamw")
    found = {
        id(parameter): (group["lr"], group["weight_decay"]) for group in built.param_groups
        for parameter in group["params"]
    }  # fmt: skip
    for name, parameter in made.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in found
        elif "lora_B" in name:
            assert found[id(parameter)] == (pytest.approx(1.6e-3), 5e-4)
        elif "norm" in name or "magnitude" in name:
            assert found[id(parameter)] == (1e-4, 0.0)
        else:
            assert found[id(parameter)] == (1e-4, 5e-4)


@pytest.mark.parametrize("kind", ["adamw", "deepspeed_cpu_adam"])
def test_defect_12_an_optimizer_that_cannot_be_made_is_an_error(kind, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments, **named):
        raise OSError("no such operator")

    monkeypatch.setattr(torch.optim, "AdamW", broken)
    monkeypatch.setattr(native, "deepspeed_cpu_adam", broken)
    made = model()
    with pytest.raises(OSError, match="no such operator"):
        optimizer.build(dict(made.named_parameters()), optimizer.groups(made, CONFIG), CONFIG, kind)


def test_table_tells_what_the_groups_do() -> None:
    rules = [Rule(match=r"v_proj$", mode="lora", rank=2, alpha=2, dora=True), *RULES]
    choices = choose(model([Rule(match=".", mode="full")]), rules)
    rows = optimizer.table(choices, CONFIG)
    by_module = {row.module: row for row in rows}
    assert len(by_module) == len(rows)
    value, query = by_module["model.layers.*.self_attn.v_proj"], by_module["model.layers.*.self_attn.q_proj"]
    assert list(value.rates) == ["base", "lora_b", "norm"]
    assert (value.modules, value.parameters, value.trainable) == (1, 64, 2 * 8 + 2 * 8 + 8)
    assert query.rates == {"full": optimizer.Rate(1e-4, 5e-4)}
    assert by_module["lm_head"].rates == {}
    made = model(rules)
    assert sum(row.trainable for row in rows) == sum(
        value.numel() for value in made.parameters() if value.requires_grad
    )
    assert {role for row in rows for role in row.rates} == {group.role for group in optimizer.groups(made, CONFIG)}
    lines = {line.split()[0]: line for line in optimizer.format_table(rows).splitlines()}
    assert "base 0.0001, lora_b 0.0016, norm 0.0001" in lines["model.layers.*.self_attn.v_proj"]
    assert lines["model.norm"].split()[1:] == ["full", "1", "8", "8", "0.0001", "0"]
    assert lines["lm_head"].split()[1:] == ["frozen", "1", "88", "0", "-", "-"]


def test_roles_without_parameters_make_no_group() -> None:
    plan = optimizer.groups(model([Rule(match="norm", mode="full")]), CONFIG)
    assert [group.role for group in plan] == ["norm"]


def test_ratios_survive_a_schedule_and_a_broken_ratio_is_found() -> None:
    made = model()
    plan = optimizer.groups(made, CONFIG)
    built = optimizer.build(dict(made.named_parameters()), plan, CONFIG, "adamw")
    optimizer.check_ratios(built, plan)
    for group in built.param_groups:
        group["lr"] *= 0.05
    optimizer.check_ratios(built, plan)
    built.param_groups[-1]["lr"] = 1.0
    with pytest.raises(RuntimeError, match="out of proportion"):
        optimizer.check_ratios(built, plan)


def test_native_adam_is_chosen_only_where_it_can_run(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(native, "_prebuilt", lambda: False)
    monkeypatch.setenv(native.FOLDER_VARIABLE, str(tmp_path))
    assert optimizer.choose_kind(CONFIG, on_cpu=True) == "adamw"
    demanded = CONFIG.model_copy(update={"kind": "deepspeed_cpu_adam"})
    with pytest.raises(ResourceError, match="not built"):
        optimizer.choose_kind(demanded, on_cpu=True)
    built = tmp_path / "cpu_adam"
    built.mkdir()
    (built / "cpu_adam.so").touch()
    (built / "polysome.json").write_text('{"processor": "another", "python": "3.11", "torch": "0", "deepspeed": "0"}')
    with pytest.raises(ResourceError, match=r"built for another .*processor"):
        optimizer.choose_kind(demanded, on_cpu=True)
    monkeypatch.setattr(native, "obstacle", lambda: None)
    assert optimizer.choose_kind(CONFIG, on_cpu=True) == "deepspeed_cpu_adam"
    assert optimizer.choose_kind(CONFIG, on_cpu=False) == "adamw"


def test_both_optimizers_take_the_same_steps() -> None:
    if native.obstacle() is not None:
        pytest.skip(f"DeepSpeed CPU Adam: {native.obstacle()}")
    results = []
    for kind in ("adamw", "deepspeed_cpu_adam"):
        torch.manual_seed(0)
        made = model()
        plan = optimizer.groups(made, CONFIG)
        built = optimizer.build(dict(made.named_parameters()), plan, CONFIG, kind)
        for _ in range(5):
            made(input_ids=torch.arange(10)[None], labels=torch.arange(10)[None]).loss.backward()
            built.step()
            built.zero_grad()
        results.append([value.detach().clone() for value in made.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_native_adam_goes_on_from_its_state_bit_for_bit() -> None:
    """By itself it multiplies powers of the betas up, rounding each time, and a resumed one would start exact."""
    if native.obstacle() is not None:
        pytest.skip(f"DeepSpeed CPU Adam: {native.obstacle()}")
    gradients = torch.randn(60, 32, generator=torch.Generator().manual_seed(1))

    def stepped(value: torch.Tensor, state: dict, steps: slice) -> tuple[torch.Tensor, dict]:
        parameter = torch.nn.Parameter(value.clone())
        plan = [optimizer.Group("full", ("p",), 1e-2, 0.0)]
        built = optimizer.build({"p": parameter}, plan, CONFIG, "deepspeed_cpu_adam")
        built.state[parameter] = copy.deepcopy(state)
        for gradient in gradients[steps]:
            parameter.grad = gradient.clone()
            built.step()
        return parameter.detach(), built.state[parameter]

    fresh = {"step": 0, "exp_avg": torch.zeros(32), "exp_avg_sq": torch.zeros(32)}
    whole, _ = stepped(torch.ones(32), fresh, slice(None))
    resumed, _ = stepped(*stepped(torch.ones(32), fresh, slice(37)), slice(37, None))
    assert torch.equal(whole, resumed)
