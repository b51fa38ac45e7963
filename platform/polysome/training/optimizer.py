"""Optimizer: parameter groups by role (A-95), the table of what trains, and AdamW from DeepSpeed or from torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from polysome.config import ResourceError
from polysome.models.trainability import Mode, ModuleChoice, Role, role, token_matrices
from polysome.training import native
from polysome.training.config import Optimizer

if TYPE_CHECKING:
    import torch

ChosenOptimizer = Literal["deepspeed_cpu_adam", "adamw"]


@dataclass(frozen=True)
class Rate:
    """Peak learning rate and decoupled weight decay."""

    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Group:
    """One parameter group.

    Attributes:
        role: of all its parameters, from `trainability.role`.
        names: parameter names, in module order.
    """

    role: Role
    names: tuple[str, ...]
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class TableRow:
    """Modules that are treated alike.

    Attributes:
        module: their name, with `*` for layer numbers.
        mode: full, lora or frozen.
        modules: their number.
        parameters: their own, without LoRA.
        trainable: those that train.
        rates: peak learning rate and weight decay by role; empty for frozen ones.
    """

    module: str
    mode: Mode
    modules: int
    parameters: int
    trainable: int
    rates: dict[Role, Rate]


def rates(config: Optimizer) -> dict[Role, Rate]:
    """Peak learning rate and weight decay of every role: LoRA B at `lora_plus_ratio`, vectors without decay (A-95)."""
    base = Rate(config.learning_rate, config.weight_decay)
    return {
        "base": base,
        "lora_b": replace(base, learning_rate=config.learning_rate * config.lora_plus_ratio),
        "full": base,
        # A group of its own, so that it alone can learn at first.
        "embedding": base,
        "norm": replace(base, weight_decay=0.0),
    }


def groups(model: torch.nn.Module, config: Optimizer) -> list[Group]:
    """The groups of all trainable parameters; roles that hold none are left out."""
    names: dict[Role, list[str]] = {}
    of_tokens = token_matrices(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            names.setdefault(role(name, parameter, of_tokens), []).append(name)
    return [
        Group(one, tuple(names[one]), rate.learning_rate, rate.weight_decay)
        for one, rate in rates(config).items()
        if one in names
    ]


def table(choices: Sequence[ModuleChoice], config: Optimizer) -> list[TableRow]:
    """What trains and how, to print and to store: a row for every module pattern and mode, in module order."""
    rate_of = rates(config)
    members: dict[tuple[str, Mode], list[ModuleChoice]] = {}
    for choice in choices:
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", choice.module)
        members.setdefault((pattern, choice.mode), []).append(choice)
    return [
        TableRow(
            module=pattern,
            mode=mode,
            modules=len(alike),
            parameters=sum(choice.parameters for choice in alike),
            trainable=sum(choice.trainable for choice in alike),
            rates={one: rate_of[one] for one in rate_of if any(one in choice.trains for choice in alike)},
        )
        for (pattern, mode), alike in members.items()
    ]


def format_table(rows: Sequence[TableRow]) -> str:
    """The table as aligned text; where roles differ in learning rate or weight decay, each is named."""

    def told(row: TableRow, values: list[float]) -> str:
        if len(set(values)) <= 1:
            return f"{values[0]:g}" if values else "-"
        return ", ".join(f"{one} {value:g}" for one, value in zip(row.rates, values, strict=True))

    lines = [("module", "mode", "modules", "parameters", "trainable", "learning rate", "weight decay")]
    for row in rows:
        rate = list(row.rates.values())
        lines.append(
            (
                row.module,
                row.mode,
                f"{row.modules}",
                f"{row.parameters:,}",
                f"{row.trainable:,}",
                told(row, [one.learning_rate for one in rate]),
                told(row, [one.weight_decay for one in rate]),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(7)]
    align = "<<>>><<"
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, align, widths, strict=True)).rstrip()
        for line in lines
    )


def choose_kind(config: Optimizer, *, on_cpu: bool) -> ChosenOptimizer:
    """Which AdamW runs; both compute the same update in fp32 and read the same checkpoints.

    Args:
        on_cpu: whether the optimizer state lies in CPU memory (no GPU, or offloaded).

    Raises:
        ResourceError: DeepSpeed's CPU Adam is demanded and cannot run here.
    """
    if config.kind == "adamw":
        return "adamw"
    obstacle = native.obstacle() if on_cpu else "the optimizer state is on the GPU; set offload: true"
    if obstacle is None:
        return "deepspeed_cpu_adam"
    if config.kind == "deepspeed_cpu_adam":
        raise ResourceError(
            f"DeepSpeedCPUAdam cannot run: {obstacle}",
            where="optimizer.kind = deepspeed_cpu_adam",
            fix="run `python -m polysome.training.native` where a C++ compiler is, or set optimizer.kind: auto",
        )
    return "adamw"


def build(
    parameters: Mapping[str, torch.Tensor], plan: list[Group], config: Optimizer, kind: ChosenOptimizer
) -> torch.optim.Optimizer:
    """The optimizer over `parameters` in the groups of `plan`; each also carries its role under the key `role`."""
    import torch

    content = [
        {
            "params": [parameters[name] for name in group.names],
            "lr": group.learning_rate,
            "weight_decay": group.weight_decay,
            "role": group.role,
        }
        for group in plan
    ]
    if kind == "adamw":
        return torch.optim.AdamW(content, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True)
    return native.deepspeed_cpu_adam(
        content, learning_rate=config.learning_rate, betas=config.betas, epsilon=config.epsilon
    )


def check_ratios(actual: torch.optim.Optimizer, plan: list[Group]) -> None:
    """Assert that DeepSpeed and the scheduler kept every group's learning rate in proportion, and its weight decay.

    Raises:
        RuntimeError: a group is missing, or its rate or decay was changed.
    """
    if len(actual.param_groups) != len(plan):
        raise RuntimeError(f"{len(actual.param_groups)} parameter groups where {len(plan)} were given")
    first = actual.param_groups[0]["lr"] / plan[0].learning_rate
    for group, wanted in zip(actual.param_groups, plan, strict=True):
        if abs(group["lr"] - first * wanted.learning_rate) > 1e-9 * wanted.learning_rate:
            raise RuntimeError(f"learning rate of group {wanted.role} is {group['lr']}, out of proportion")
        if group["weight_decay"] != wanted.weight_decay:
            raise RuntimeError(f"weight decay of group {wanted.role} is {group['weight_decay']}")
