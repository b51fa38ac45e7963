"""Trainability: rules decide for every module whether it trains in full, through LoRA, or not at all (A-93, A-95)."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from polysome.config import Config, ConfigurationError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Mode = Literal["full", "lora", "frozen"]

ADAPTER = "default"
"""Name of the one LoRA adapter in a model that trains."""


class Rule(Config):
    """What becomes of the modules whose name matches."""

    match: str
    """Regular expression, searched in the module's dotted name (`model.layers.0.self_attn.q_proj`)."""
    mode: Mode
    rank: int | None = Field(default=None, gt=0)
    """LoRA rank r."""
    alpha: float | None = Field(default=None, gt=0)
    """LoRA alpha; updates are scaled by alpha/r."""
    rank_stabilized: bool = False
    """Scale by alpha/sqrt(r) instead of alpha/r (AMB-7)."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _complete(self) -> Rule:
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"match {self.match!r} is not a regular expression: {error}") from error
        if self.mode == "lora" and (self.rank is None or self.alpha is None):
            raise ValueError("mode lora needs rank and alpha")
        if self.mode != "lora" and (self.rank is not None or self.alpha is not None):
            raise ValueError(f"rank and alpha belong to mode lora, not to mode {self.mode}")
        return self

    @property
    def scaling(self) -> float:
        """The factor of the low-rank update."""
        if self.rank is None or self.alpha is None:
            raise TypeError(f"a rule of mode {self.mode} has no scaling")
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


@dataclass(frozen=True)
class ModuleChoice:
    """What was decided for one module.

    Attributes:
        module: dotted name.
        rule: position of the rule that decided, or None when no rule matched (frozen).
        parameters: parameters of the module itself.
        trainable: parameters that train; for LoRA those of A and B.
    """

    module: str
    mode: Mode
    rule: int | None
    parameters: int
    trainable: int


def choose(model: torch.nn.Module, rules: Sequence[Rule]) -> list[ModuleChoice]:
    """Decide for every module that owns parameters; the first matching rule wins, no match means frozen.

    Works on the meta device.

    Raises:
        ConfigurationError: a rule decides nothing, asks LoRA of something that is no linear layer, leaves nothing to
            train, or treats two modules that share a weight differently.
    """
    import torch

    choices: list[ModuleChoice] = []
    matched = [0] * len(rules)
    owner_of: dict[int, ModuleChoice] = {}
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        matching = [position for position, rule in enumerate(rules) if re.search(rule.match, name)]
        for position in matching:
            matched[position] += 1
        rule = rules[matching[0]] if matching else None
        mode: Mode = rule.mode if rule else "frozen"
        size = sum(parameter.numel() for parameter in own.values())
        trainable = size if mode == "full" else 0
        if rule and mode == "lora":
            if not isinstance(module, torch.nn.Linear):
                raise ConfigurationError(
                    f"LoRA is for linear layers, and {name} is a {type(module).__name__}",
                    where=f"trainability[{matching[0]}].match = {rule.match!r}",
                    fix="narrow the pattern, or choose mode full",
                )
            trainable = int(rule.rank or 0) * (module.in_features + module.out_features)
        choice = ModuleChoice(name, mode, matching[0] if matching else None, size, trainable)
        for parameter in own.values():
            first = owner_of.setdefault(id(parameter), choice)
            if first.mode != mode or (first is not choice and mode == "lora"):
                raise ConfigurationError(
                    f"{first.module} and {name} share one weight, but are {first.mode} and {mode}",
                    where="trainability",
                    fix="let one rule decide both, full or frozen, or set tie_word_embeddings: false",
                )
            if first is not choice:
                choice = ModuleChoice(name, mode, choice.rule, size, 0)
        choices.append(choice)
    _refuse_idle_rules(rules, matched, choices)
    if not any(choice.trainable for choice in choices):
        raise ConfigurationError(
            "no module trains", where="trainability", fix="add a rule of mode full or lora, for example match: norm"
        )
    return choices


def apply(model: torch.nn.Module, rules: Sequence[Rule], *, seed: int) -> list[ModuleChoice]:
    """Make exactly the chosen parameters trainable; LoRA layers start as the identity (A kaiming-uniform, B zero).

    Args:
        model: on a real device; it is changed in place.
        seed: of the draw of every A, the same in every process.

    Returns:
        The choices of `choose`, in module order.
    """
    import torch

    choices = choose(model, rules)
    model.requires_grad_(False)
    for position, rule in enumerate(rules):
        if rule.mode == "lora" and rule.alpha is not None and rule.rank is not None and rule.alpha < rule.rank:
            logger.warning(
                "trainability[%d]: alpha %g is below rank %d, so updates are scaled by %.3g (AMB-7)",
                position,
                rule.alpha,
                rule.rank,
                rule.scaling,
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for choice in choices:
            module = model.get_submodule(choice.module)
            if choice.mode == "full":
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(True)
            elif choice.mode == "lora" and choice.rule is not None:
                _replace(model, choice.module, _low_rank(module, rules[choice.rule]))
    return choices


def merge(model: torch.nn.Module) -> None:
    """Fold every LoRA update into its linear layer, in the dtype that the model has, and put the plain layer back.

    Call it on fp32 weights: merging in bf16 doubles the rounding error of the merged weight.
    """
    for name, module in list(model.named_modules()):
        if hasattr(module, "lora_A") and hasattr(module, "get_delta_weight"):
            base = module.get_base_layer()
            base.weight.data += module.get_delta_weight(ADAPTER).to(base.weight.dtype)
            _replace(model, name, base)


def table(choices: Sequence[ModuleChoice], learning_rates: dict[Mode, str]) -> list[dict[str, Any]]:
    """Rows to print and store: module pattern (layer numbers folded), mode, modules, parameters, learning rate."""
    rows: dict[tuple[str, Mode], dict[str, Any]] = {}
    for choice in choices:
        pattern = re.sub(r"\.\d+\.", ".*.", choice.module)
        row = rows.setdefault(
            (pattern, choice.mode),
            {
                "module": pattern,
                "mode": choice.mode,
                "modules": 0,
                "parameters": 0,
                "trainable": 0,
                "learning_rate": learning_rates.get(choice.mode, "0"),
            },
        )
        row["modules"] += 1
        row["parameters"] += choice.parameters
        row["trainable"] += choice.trainable
    return list(rows.values())


def _refuse_idle_rules(rules: Sequence[Rule], matched: list[int], choices: list[ModuleChoice]) -> None:
    deciding = {choice.rule for choice in choices}
    for position, rule in enumerate(rules):
        if position in deciding:
            continue
        where = f"trainability[{position}].match = {rule.match!r}"
        if matched[position]:
            raise ConfigurationError(
                "this rule decides nothing: earlier rules match all of its modules",
                where=where,
                fix="put it before them, or remove it",
            )
        examples = ", ".join(sorted({choice.module.rpartition(".")[2] for choice in choices}))
        raise ConfigurationError(
            "this rule matches no module of the model",
            where=where,
            fix=f"mend the pattern; module names end in: {examples}",
        )


def _low_rank(module: torch.nn.Module, rule: Rule) -> torch.nn.Module:
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    config = LoraConfig(
        r=int(rule.rank or 0),
        lora_alpha=rule.alpha,  # type: ignore[arg-type]
        lora_dropout=rule.dropout,
        use_rslora=rule.rank_stabilized,
        init_lora_weights=True,
    )
    layer = Linear(module, ADAPTER, config=config, r=config.r, lora_alpha=config.lora_alpha)
    layer.requires_grad_(False)
    layer.lora_A[ADAPTER].weight.requires_grad_(True)
    layer.lora_B[ADAPTER].weight.requires_grad_(True)
    return layer


def _replace(model: torch.nn.Module, name: str, replacement: torch.nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, replacement)
