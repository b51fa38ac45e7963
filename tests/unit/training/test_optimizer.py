"""Parameter groups by role, and the choice of AdamW."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from polysome.config import ResourceError
from polysome.models.trainability import Rule, apply
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
    by_role = {group.role: group for group in plan}
    assert {role: (group.learning_rate, group.weight_decay) for role, group in by_role.items()} == {
        "base": (1e-4, 5e-4),
        "lora_b": (pytest.approx(1.6e-3), 5e-4),
        "full": (1e-4, 5e-4),
        "norm": (1e-4, 0.0),
    }
    names = [name for group in plan for name in group.names]
    assert sorted(names) == sorted(name for name, value in made.named_parameters() if value.requires_grad)
    assert all("lora_B" in name for name in by_role["lora_b"].names)
    assert all("norm" in name for name in by_role["norm"].names)


def test_roles_without_parameters_make_no_group() -> None:
    plan = optimizer.groups(model([Rule(match="norm", mode="full")]), CONFIG)
    assert [group.role for group in plan] == ["norm"]


def test_ratios_survive_a_schedule_and_a_broken_ratio_is_found() -> None:
    made = model()
    plan = optimizer.groups(made, CONFIG)
    built = optimizer.build(made, plan, CONFIG, "adamw")
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
        built = optimizer.build(made, plan, CONFIG, kind)
        for _ in range(5):
            made(input_ids=torch.arange(10)[None], labels=torch.arange(10)[None]).loss.backward()
            built.step()
            built.zero_grad()
        results.append([value.detach().clone() for value in made.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
