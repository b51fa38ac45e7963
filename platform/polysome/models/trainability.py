"""Trainability: rules decide for every module whether it trains in full, through LoRA, or not at all (A-93, A-95)."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from polysome.config import Config, ConfigurationError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Mode = Literal["full", "lora", "frozen"]
Role = Literal["base", "lora_b", "full", "embedding", "norm"]
Scaling = Literal["alpha/r", "alpha/sqrt(r)"]

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
    """LoRA alpha, the numerator of `scaling`."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Of the input of LoRA A, while training."""
    scaling: Scaling = "alpha/r"
    """Factor of the low-rank update; alpha/sqrt(r) is rank-stabilized LoRA (AMB-7, A-144)."""
    dora: bool = False
    """Train the length of every row of the weight apart from its direction (DoRA, A-144)."""

    @model_validator(mode="after")
    def _complete(self) -> Rule:
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"match {self.match!r} is not a regular expression: {error}") from error
        if self.mode == "lora" and (self.rank is None or self.alpha is None):
            raise ValueError("mode lora needs rank and alpha")
        plain = {
            name: field.default for name, field in type(self).model_fields.items() if name not in ("match", "mode")
        }
        foreign = sorted(name for name, default in plain.items() if getattr(self, name) != default)
        if self.mode != "lora" and foreign:
            raise ValueError(f"{', '.join(foreign)}: only mode lora has it, not mode {self.mode}")
        return self

    @property
    def factor(self) -> float:
        """The factor of the low-rank update."""
        if self.rank is None or self.alpha is None:
            raise TypeError(f"a rule of mode {self.mode} has no low-rank update")
        return self.alpha / (self.rank if self.scaling == "alpha/r" else math.sqrt(self.rank))


@dataclass(frozen=True)
class ModuleChoice:
    """What was decided for one module.

    Attributes:
        module: dotted name.
        rule: position of the rule that decided, or None when no rule matched (frozen).
        parameters: parameters of the module itself, but for those that it shares with an earlier module.
        trains: parameters that train, by role; for LoRA those of A, B and the magnitudes of DoRA.
    """

    module: str
    mode: Mode
    rule: int | None
    parameters: int
    trains: dict[Role, int]

    @property
    def trainable(self) -> int:
        """Parameters that train."""
        return sum(self.trains.values())


def token_matrices(model: torch.nn.Module) -> set[int]:
    """Identities of the parameters with a row for every token: the embedding's matrix and the output layer's."""
    found = (getattr(model, name, lambda: None)() for name in ("get_input_embeddings", "get_output_embeddings"))
    return {id(layer.weight) for layer in found if layer is not None}


def role(name: str, parameter: torch.nn.Parameter, token_matrices: set[int]) -> Role:
    """What a parameter is to the optimizer (A-95).

    Args:
        token_matrices: of the model.

    Returns:
        base (LoRA A), lora_b (LoRA B), embedding (matrices of tokens trained in full), full (other matrices trained in
        full), or norm (all vectors: norm weights, biases and the magnitudes of DoRA, which, like the gain of a norm,
        weight decay would only shrink).
    """
    if id(parameter) in token_matrices:
        return "embedding"
    if "lora_A." in name:
        return "base"
    if "lora_B." in name:
        return "lora_b"
    return "full" if parameter.ndim > 1 else "norm"


def choose(model: torch.nn.Module, rules: Sequence[Rule]) -> list[ModuleChoice]:
    """Decide for every module that owns parameters; the first matching rule wins, no match means frozen.

    Works on the meta device. Warns of a rule whose alpha is below its rank (AMB-7).

    Raises:
        ConfigurationError: a rule decides nothing, asks LoRA of something that is no linear layer, leaves nothing to
            train, or treats two modules that share a weight differently.
    """
    for position, rule in enumerate(rules):
        if rule.mode == "lora" and rule.factor < 1 and rule.scaling == "alpha/r":
            logger.warning(
                "trainability[%d]: alpha %g is below rank %d, so updates are scaled by %.3g (AMB-7)",
                position,
                rule.alpha,
                rule.rank,
                rule.factor,
            )
    return _decide(model, rules)


def _decide(model: torch.nn.Module, rules: Sequence[Rule]) -> list[ModuleChoice]:
    choices: list[ModuleChoice] = []
    matched = [0] * len(rules)
    owner_of: dict[int, ModuleChoice] = {}
    of_tokens = token_matrices(model)
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        matching = [position for position, rule in enumerate(rules) if re.search(rule.match, name)]
        for position in matching:
            matched[position] += 1
        rule = rules[matching[0]] if matching else None
        mode: Mode = rule.mode if rule else "frozen"
        for parameter in own.values():
            first = owner_of.get(id(parameter))
            if first is not None and (first.mode != mode or mode == "lora"):
                raise ConfigurationError(
                    f"{first.module} and {name} share one weight, but are {first.mode} and {mode}",
                    where="trainability",
                    fix="let one rule decide both, full or frozen, or set tie_word_embeddings: false",
                )
        unshared = [parameter for parameter in own.values() if id(parameter) not in owner_of]
        trains: dict[Role, int] = {}
        if rule and mode == "full":
            for parameter in unshared:
                part = role(name, parameter, of_tokens)
                trains[part] = trains.get(part, 0) + parameter.numel()
        elif rule and mode == "lora":
            features = _features(module)
            if features is None:
                raise ConfigurationError(
                    f"LoRA is for linear layers, and {name} is a {type(module).__name__}",
                    where=f"trainability[{matching[0]}].match = {rule.match!r}",
                    fix="narrow the pattern, or choose mode full",
                )
            rank, (inputs, outputs) = int(rule.rank or 0), features
            trains = {"base": rank * inputs, "lora_b": rank * outputs}
            if rule.dora:
                trains["norm"] = outputs
        size = sum(parameter.numel() for parameter in unshared)
        choice = ModuleChoice(name, mode, matching[0] if matching else None, size, trains)
        owner_of |= dict.fromkeys(map(id, unshared), choice)
        choices.append(choice)
    _refuse_idle_rules(rules, matched, choices)
    if not any(choice.trainable for choice in choices):
        raise ConfigurationError(
            "no module trains", where="trainability", fix="add a rule of mode full or lora, for example match: norm"
        )
    return choices


def apply(model: torch.nn.Module, rules: Sequence[Rule], *, seed: int) -> list[ModuleChoice]:
    """Make exactly the chosen parameters trainable; LoRA layers start as the identity (A kaiming-uniform, B zero).

    A linear layer under LoRA becomes one of peft's, whose parameters are named `<module>.lora_A.default.weight`,
    `<module>.lora_B.default.weight` and, with DoRA, `<module>.lora_magnitude_vector.default.weight`.

    Args:
        model: on a real device; it is changed in place.
        seed: of the draw of every A, the same in every process.

    Returns:
        The choices of `choose`, in module order.
    """
    import torch

    choices = _decide(model, rules)
    model.requires_grad_(False)
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
    """Fold every LoRA or DoRA update into its linear layer, in the dtype that the model has, and put that layer back.

    Call it on fp32 weights: merging in bf16 doubles the rounding error of the merged weight.
    """
    for name, module in list(model.named_modules()):
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            module.merge()
            _replace(model, name, module.get_base_layer())


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


def _features(module: torch.nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer, torch's or GPT-2's; None for anything else."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return None


def _low_rank(module: torch.nn.Module, rule: Rule) -> torch.nn.Module:
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear
    from transformers.pytorch_utils import Conv1D

    config = LoraConfig(
        r=int(rule.rank or 0),
        lora_alpha=rule.alpha,  # type: ignore[arg-type]
        lora_dropout=rule.dropout,
        use_rslora=rule.scaling == "alpha/sqrt(r)",
        use_dora=rule.dora,
        # GPT-2's layers keep their weight transposed.
        fan_in_fan_out=isinstance(module, Conv1D),
        init_lora_weights=True,
    )
    layer = Linear(module, ADAPTER, config=config, r=config.r, lora_alpha=config.lora_alpha)
    module.requires_grad_(False)
    return layer


def _replace(model: torch.nn.Module, name: str, replacement: torch.nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, replacement)
