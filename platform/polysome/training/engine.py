"""Engines: one optimizer update over micro-batches, with DeepSpeed ZeRO-2 or with plain data parallelism.

Both minimise the same thing, the loss of an update summed over its targets on all workers and divided by their number;
accumulate gradients and keep masters and moments in fp32; clip by the global norm; and skip an update whose gradient is
not finite. Checkpoints read and write their state by parameter name, so that either goes on where the other stopped.
"""

from __future__ import annotations

import logging
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from polysome.models.trainability import Role
from polysome.training import native, optimizer
from polysome.training.batch import MicroBatch, PackedLanguageModel
from polysome.training.config import StageConfig
from polysome.training.optimizer import ChosenOptimizer, Group

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

State = dict[str, torch.Tensor]
"""Of one parameter: `master`, `exp_avg` and `exp_avg_sq`, fp32, each of the parameter's shape."""

MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")
_REDUCED_AT_ONCE = 1 << 25
"""Gradient elements per reduction, so that the buffer stays small beside the gradients."""


@dataclass(frozen=True)
class Place:
    """A worker among workers."""

    rank: int
    world_size: int
    device: torch.device


class Engine(ABC):
    """A model that trains on one worker among workers. All methods but the attributes are called by all of them."""

    def __init__(self, model: PackedLanguageModel, plan: list[Group], place: Place) -> None:
        """Use `open_engine`."""
        self.model, self.plan, self.place = model, plan, place
        self.causal: Any = model.causal
        self.parameters = {name: value for name, value in self.causal.named_parameters() if value.requires_grad}
        """What trains, by its name in the causal model, in one order on every worker."""

    @property
    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """What runs, with the parameter groups of the plan."""

    @abstractmethod
    def update(self, batches: Iterable[MicroBatch], targets: int) -> tuple[float, torch.Tensor]:
        """One optimizer update.

        Args:
            batches: this worker's micro-batches, as many on every worker as the engine was opened for.
            targets: of all micro-batches of all workers.

        Returns:
            The global gradient norm before clipping; infinite when it is not finite, and then nothing was changed.
            And the sums of `PackedLanguageModel`, float64 [sources, 3], of this worker's micro-batches.
        """

    @property
    @abstractmethod
    def steps(self) -> int:
        """Updates that were not skipped."""

    @abstractmethod
    def states(self) -> Iterator[tuple[str, State]]:
        """The whole state of every parameter that trains, one after the other; views, to be copied at once."""

    @abstractmethod
    def load(self, read: Callable[[str], State], steps: int) -> None:
        """Take over the state of every parameter as of update `steps`, whose rounded copy goes into the model."""

    def set_rates(self, factor: float, learns: Callable[[Role], bool] = lambda role: True) -> dict[str, float]:
        """Set every group's learning rate to its peak times `factor`, or to 0 where its role does not learn now.

        Returns:
            The rates by role (A-95).
        """
        for actual, wanted in zip(self.optimizer.param_groups, self.plan, strict=True):
            actual["lr"] = wanted.learning_rate * factor * learns(wanted.role)
        return {group.role: group.learning_rate * factor * learns(group.role) for group in self.plan}

    def masters(self, *, keep: bool) -> dict[str, torch.Tensor]:
        """fp32 master weights by name, on the CPU; workers without `keep` take part and get nothing."""
        return {name: state[MASTER].to("cpu", copy=True) for name, state in self.states() if keep}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model in evaluation mode and without gradients, and as it was afterwards."""
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train()


def open_engine(
    model: PackedLanguageModel, config: StageConfig, plan: list[Group], kind: ChosenOptimizer, place: Place
) -> Engine:
    """The engine that a stage asks for; the model is cast to its precision and moved to the worker's device.

    Args:
        model: fp32 on the CPU, with exactly what trains requiring gradients.
        plan: the parameter groups.

    Raises:
        RuntimeError: the optimizer's groups are not those of the plan.
    """
    accumulation = config.accumulation(place.world_size)
    opened: Engine
    if config.zero:
        opened = _ZeroEngine(model, config, plan, kind, place, accumulation)
    else:
        opened = _PlainEngine(model, config, plan, kind, place)
    optimizer.check_ratios(opened.optimizer, plan)
    if config.compile:
        model.causal.compile(dynamic=True)
    return opened


class _PlainEngine(Engine):
    """Every worker holds all masters and moments; gradients are summed over workers in fp32."""

    def __init__(
        self,
        model: PackedLanguageModel,
        config: StageConfig,
        plan: list[Group],
        kind: ChosenOptimizer,
        place: Place,
    ) -> None:
        super().__init__(model, plan, place)
        exact = {name: value.detach().float() for name, value in self.parameters.items()}
        with _kept_buffers(model):
            # Rounded before it is moved: a device need not hold the model in fp32.
            model.to(dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32)
        model.to(place.device)
        self._clip = config.optimizer.clip
        # In fp32 the parameters are their own masters.
        self._masters = (
            {name: value.to(place.device) for name, value in exact.items()}
            if config.precision == "bf16"
            else dict(self.parameters)
        )
        for name, parameter in self.parameters.items():
            self._masters[name].grad = torch.zeros_like(self._masters[name])
            if self._masters[name] is not parameter:
                parameter.register_post_accumulate_grad_hook(_into(self._masters[name]))
        self._optimizer = optimizer.build(self._masters, plan, config.optimizer, kind)
        self._steps = 0

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    @property
    def steps(self) -> int:
        return self._steps

    def update(self, batches: Iterable[MicroBatch], targets: int) -> tuple[float, torch.Tensor]:
        sums = torch.zeros((self.model.objective.sources, 3), dtype=torch.float64, device=self.place.device)
        for batch in batches:
            loss, made_of = self.model(batch)
            (loss / max(targets, 1)).backward()
            sums += made_of
        gradients = [value.grad for value in self._masters.values() if value.grad is not None]
        _sum_over_workers(gradients, self.place.world_size)
        norm = torch.nn.utils.get_total_norm(gradients)
        found = float(norm)
        if math.isfinite(found):
            if self._clip:
                torch.nn.utils.clip_grads_with_norm_(list(self._masters.values()), self._clip, norm)
            self._optimizer.step()
            self._steps += 1
            self._round()
        for gradient in gradients:
            gradient.zero_()
        return found if math.isfinite(found) else math.inf, sums

    def states(self) -> Iterator[tuple[str, State]]:
        for name, master in self._masters.items():
            state = self._optimizer.state.get(master) or fresh_state(self._optimizer, master, steps=0)
            yield name, {MASTER: master.detach(), **{moment: state[moment] for moment in MOMENTS}}

    def load(self, read: Callable[[str], State], steps: int) -> None:
        for name, master in self._masters.items():
            state = read(name)
            master.data.copy_(state[MASTER])
            self._optimizer.state[master] = fresh_state(self._optimizer, master, steps=steps)
            for moment in MOMENTS:
                self._optimizer.state[master][moment].copy_(state[moment])
        self._steps = steps
        self._round()

    def _round(self) -> None:
        """The masters' values, in the model's precision, into the model."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if self._masters[name] is not parameter:
                    parameter.copy_(self._masters[name])


class _ZeroEngine(Engine):
    """DeepSpeed ZeRO-2: every worker holds its share of the masters and moments, on its device or offloaded."""

    def __init__(
        self,
        model: PackedLanguageModel,
        config: StageConfig,
        plan: list[Group],
        kind: ChosenOptimizer,
        place: Place,
        accumulation: int,
    ) -> None:
        import deepspeed

        super().__init__(model, plan, place)
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        native.skip_shared_memory_operation()
        parameters = self.parameters
        exact = (
            {name: value.detach().clone() for name, value in parameters.items()} if config.precision == "bf16" else {}
        )
        with _kept_buffers(model):
            self._engine: DeepSpeedEngine = deepspeed.initialize(
                model=model,
                optimizer=optimizer.build(parameters, plan, config.optimizer, kind),
                config=deepspeed_configuration(
                    config, accumulation, sum(value.numel() for value in parameters.values())
                ),
            )[0]
        model.to(place.device)
        # DeepSpeed looks for gradients that are not finite in bf16 and fp16 alone.
        self._engine.optimizer.check_grad_overflow = True
        # DeepSpeed divides gradients by the accumulation steps and averages them over workers; both are undone.
        self._undo_averaging = place.world_size * accumulation
        if exact:
            from deepspeed.utils import safe_set_full_fp32_param

            for name, parameter in parameters.items():
                # The weights that the model had before DeepSpeed rounded it.
                safe_set_full_fp32_param(parameter, exact[name].to(parameter.device))

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._engine.optimizer

    @property
    def steps(self) -> int:
        found = {int(state["step"]) for state in self._engine.optimizer.optimizer.state.values() if "step" in state}
        (steps,) = found or {0}
        return steps

    def update(self, batches: Iterable[MicroBatch], targets: int) -> tuple[float, torch.Tensor]:
        sums = torch.zeros((self.model.objective.sources, 3), dtype=torch.float64, device=self.place.device)
        for batch in batches:
            loss, made_of = self._engine(batch)
            self._engine.backward(loss * (self._undo_averaging / max(targets, 1)))
            self._engine.step()  # acts at the last micro-batch alone
            sums += made_of
        if self._engine.optimizer.overflow:
            # DeepSpeed 0.19 with offload in bf16 keeps the gradients of an update that it skips, and would add to them.
            gradients = self._engine.optimizer.averaged_gradients
            gradients.update(dict.fromkeys(gradients))
            return math.inf, sums
        return float(self._engine.get_global_grad_norm()), sums

    def states(self) -> Iterator[tuple[str, State]]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if not self._engine.optimizer.optimizer.state:
            self._start_states(steps=0)
        self._relink()
        for name, parameter in self.parameters.items():
            moments = {moment: safe_get_full_optimizer_state(parameter, moment) for moment in MOMENTS}
            yield name, {MASTER: safe_get_full_fp32_param(parameter).detach(), **moments}

    def load(self, read: Callable[[str], State], steps: int) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._start_states(steps)
        self._relink()
        for name, parameter in self.parameters.items():
            state = {key: value.to(parameter.device) for key, value in read(name).items()}
            safe_set_full_fp32_param(parameter, state[MASTER])
            for moment in MOMENTS:
                safe_set_full_optimizer_state(parameter, state[moment], moment)
            parameter.data.copy_(state[MASTER].to(parameter.dtype))

    def _start_states(self, steps: int) -> None:
        inner = self._engine.optimizer.optimizer
        for flat in self._engine.optimizer.single_partition_of_fp32_groups:
            inner.state[flat] = fresh_state(inner, flat, steps=steps)

    def _relink(self) -> None:
        # DeepSpeed 0.19 with offload links only the first parameter group to its optimizer state; link all of them.
        self._engine.optimizer._hp_optimizer_states_linked = False
        self._engine.optimizer._lazy_init_hp_params_optimizer_state()


def fresh_state(inner: torch.optim.Optimizer, flat: torch.Tensor, *, steps: int) -> dict[str, Any]:
    """AdamW's state of one fp32 tensor after `steps` steps, moments still zero, all on the tensor's device."""
    # torch's fused AdamW counts in a tensor, which must lie beside the parameter; DeepSpeed's counts in an integer.
    counts_in_tensor = isinstance(inner, torch.optim.AdamW)
    return {
        "step": torch.tensor(float(steps), device=flat.device) if counts_in_tensor else steps,
        **{moment: torch.zeros_like(flat.data, dtype=torch.float32) for moment in MOMENTS},
    }


def deepspeed_configuration(config: StageConfig, accumulation: int, trainable_parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a stage; the optimizer is given to it as an object, rates are set by the loop."""
    zero: dict[str, Any] = {
        "stage": config.zero,
        # DeepSpeed allocates a buffer of this many elements, whatever the model's size.
        "reduce_bucket_size": min(500_000_000, max(trainable_parameters, 1_000_000)),
    }
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.workers.gpus_per_worker > 0}
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optimizer.clip,
        "bf16": {"enabled": config.precision == "bf16"},
        # bf16 accumulation loses 0.8 % of the gradient over 64 steps; summed over workers in bf16, it loses more.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,
    }


@contextmanager
def _kept_buffers(model: torch.nn.Module) -> Iterator[None]:
    """Keep the precision of buffers over a cast: rotary frequencies in bf16 turn distant positions wrong."""
    exact = {name: value.clone() for name, value in model.named_buffers() if value.is_floating_point()}
    yield
    for name, value in exact.items():
        owner, _, buffer = name.rpartition(".")
        device = model.get_buffer(name).device
        setattr(model.get_submodule(owner), buffer, value.to(device))


def _into(master: torch.Tensor) -> Callable[[torch.Tensor], None]:
    def add(parameter: torch.Tensor) -> None:
        assert master.grad is not None
        assert parameter.grad is not None
        master.grad += parameter.grad
        parameter.grad = None

    return add


def _sum_over_workers(gradients: list[torch.Tensor], world_size: int) -> None:
    if world_size == 1:
        return
    waiting: list[torch.Tensor] = []
    for number, gradient in enumerate(gradients):
        waiting.append(gradient)
        last = number == len(gradients) - 1
        if last or sum(item.numel() for item in waiting) >= _REDUCED_AT_ONCE:
            flat = torch.cat([item.flatten() for item in waiting])
            torch.distributed.all_reduce(flat)
            for item, reduced in zip(waiting, flat.split([item.numel() for item in waiting]), strict=True):
                item.copy_(reduced.view_as(item))
            waiting = []
