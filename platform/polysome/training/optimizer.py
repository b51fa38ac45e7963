"""Optimizer: parameter groups by role (A-95), and AdamW from DeepSpeed's native code or from torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from polysome.config import ResourceError
from polysome.training import native
from polysome.training.config import Optimizer

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Role = Literal["base", "lora_b", "full", "norm"]
ChosenOptimizer = Literal["deepspeed_cpu_adam", "adamw"]


@dataclass(frozen=True)
class Group:
    """One parameter group.

    Attributes:
        role: base (LoRA A), lora_b (LoRA B), full (matrices trained in full), norm (norm weights and biases).
        names: parameter names, in module order.
    """

    role: Role
    names: tuple[str, ...]
    learning_rate: float
    weight_decay: float


def groups(model: torch.nn.Module, config: Optimizer) -> list[Group]:
    """The groups of all trainable parameters; roles that hold none are left out."""
    names: dict[Role, list[str]] = {"base": [], "lora_b": [], "full": [], "norm": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            names[_role(name, parameter)].append(name)
    rates: dict[Role, float] = {role: config.learning_rate for role in names}
    rates["lora_b"] = config.learning_rate * config.lora_plus_ratio
    return [
        Group(role, tuple(members), rates[role], 0.0 if role == "norm" else config.weight_decay)
        for role, members in names.items()
        if members
    ]


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


def build(model: torch.nn.Module, plan: list[Group], config: Optimizer, kind: ChosenOptimizer) -> torch.optim.Optimizer:
    """The optimizer over `plan`; each group also carries its role under the key `role`."""
    import torch

    parameters = dict(model.named_parameters())
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


def _role(name: str, parameter: torch.nn.Parameter) -> Role:
    if "lora_A." in name:
        return "base"
    if "lora_B." in name:
        return "lora_b"
    return "full" if parameter.ndim > 1 else "norm"
