"""Memory of a planned stage: per GPU or CPU worker by part, per node, and on disk.

T parameters train, N are held, n workers, b bytes of the stage's precision. Under ZeRO-2 (Rajbhandari et al. 2020,
arXiv 1910.02054, and DeepSpeed 0.19's `stage_1_and_2.py`, where each term below was read):

weights      b N          on every worker; those that train lie in one flat buffer
optimizer    12 T / n     fp32 masters and two moments; in host memory when offloaded (arXiv 2101.06840)
gradients    4 T / n      fp32, summed over micro-batches; on the GPU also when the optimizer is offloaded
buckets      (b + 4) B    gradients on their way, B = reduce_bucket_size elements, and the fp32 copy that is reduced

With `zero: 0` every worker has all of it: 12 T in bf16, where masters stand beside the weights, else 8 T, and 4 T.
Activations are counted, not estimated (plan_model.py); with gradient checkpointing a layer keeps its input alone and
one layer at a time is computed again (Chen et al. 2016, arXiv 1604.06174). The loss computes logits at target positions
only, and at its peak holds 8 bytes per logit beside the fp32 log-probabilities that it keeps. An update passes through
several moments; what is told is the one that needs most.
"""

from dataclasses import dataclass

from polysome.operations.plan_model import Model
from polysome.training.config import StageSettings

FP32 = 4
LOGIT_BYTES = 8
"""Per logit, beside the kept log-probabilities: in the forward pass the logits in the model's precision and in fp32, in
the backward pass the gradients of log-probabilities and of logits."""
CUDA_CONTEXT = 1 << 30
"""Assumed: the CUDA context with cuBLAS workspaces and NCCL buffers, 0.5 to 1.2 GiB by driver and card."""
PROCESS = 430 << 20
"""Measured: a worker process with Python, torch, transformers and DeepSpeed, memory of its own."""
_REDUCED_AT_ONCE = 1 << 25  # elements, of plain data parallelism (training/engine.py)
_CHECKPOINT_PART = 2 << 30  # bytes gathered before they are written (training/checkpoint.py)


@dataclass(frozen=True)
class Memory:
    """What one worker holds at the moment of an update that needs most.

    Attributes:
        moment: loss, backward, reduction or update.
        parts: bytes by part, in a fixed order.
    """

    moment: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return sum(self.parts.values())


def precision_bytes(settings: StageSettings) -> int:
    """Bytes of one weight in training."""
    return 2 if settings.precision == "bf16" else 4


def bucket_elements(settings: StageSettings, model: Model) -> int:
    """Elements of DeepSpeed's reduction bucket, as the stage's engine sets it."""
    return min(500_000_000, max(model.trainable, 1_000_000))


def worker_memory(settings: StageSettings, model: Model, workers: int, *, cuda: bool) -> Memory:
    """Memory of one of `workers` workers, on its GPU or, without one, in its process."""
    width = precision_bytes(settings)
    shard = -(-model.trainable // workers) if settings.zero else model.trainable
    kept = model.kept
    head = kept.logits * LOGIT_BYTES
    if settings.gradient_checkpointing:
        inputs = kept.layer_input * len(kept.layers)
        forward, one_layer = inputs + kept.outside, max(kept.layers)
    else:
        inputs, one_layer = sum(kept.layers), 0
        forward = inputs + kept.outside
    in_flight = 2 * kept.widest

    offloaded = settings.offload and cuda
    lasting = {"weights": width * model.held, "optimizer": 0 if offloaded else _optimizer(settings, shard)}
    # In fp32 there is nothing to sum more exactly: gradients go to the host one by one.
    summed = 0 if settings.offload and settings.precision == "fp32" else FP32 * shard
    if settings.offload and not cuda:
        summed += _offloaded_gradients(settings, shard, workers)
    # Between micro-batches the sum stands; before the first of an update there is none under ZeRO.
    before = summed if not settings.zero or settings.offload or settings.accumulation(workers) > 1 else 0
    reserved, reducing = _buckets(settings, model, workers)
    on_device = reserved if cuda else 0  # a GPU gives the buffer at once, a CPU page by page
    moments = {
        "loss": (before, forward, head + on_device),
        "backward": (before, inputs + one_layer, in_flight + on_device),
        "reduction": (summed, one_layer + kept.layer_input, in_flight + reserved + reducing),
        "update": (summed, 0, 0 if offloaded else _update(settings, shard)),
    }
    fixed = {"CUDA context": CUDA_CONTEXT} if cuda else {"process": PROCESS}
    found = [
        Memory(moment, {**lasting, "gradients": standing, "activations": activations, "temporary": temporary, **fixed})
        for moment, (standing, activations, temporary) in moments.items()
    ]
    return max(found, key=lambda memory: memory.total)


def host_memory(settings: StageSettings, model: Model, workers: int, per_node: int) -> dict[str, int]:
    """Bytes in the memory of a node with `per_node` GPU workers, by part, at the moment that needs most.

    Every worker builds the model in fp32 on the host and keeps an exact copy of what trains until the optimizer has
    it; that is over when training begins. The offloaded optimizer needs per trained parameter of its share 12 bytes of
    masters and moments, 4 of fp32 gradients, b for the way back to the GPU and, with accumulation, b for the sum.
    """
    processes = PROCESS * per_node
    start = {
        "processes": processes,
        "model in fp32, while it is built": FP32 * (model.held + model.trainable) * per_node,
    }
    training = {"processes": processes}
    if settings.offload:
        shard = -(-model.trainable // workers)
        each = _optimizer(settings, shard) + _offloaded_gradients(settings, shard, workers)
        training["offloaded optimizer"] = each * per_node
    training["checkpoint part being written"] = min(12 * model.trainable, _CHECKPOINT_PART + 12 * model.largest)
    return max(start, training, key=lambda parts: sum(parts.values()))


def disk(settings: StageSettings, model: Model, *, prepared: int) -> dict[str, int]:
    """Bytes that a stage writes to the run folder, and `prepared`, those of its data; by part."""
    export = 2 if (settings.export_dtype or settings.precision) == "bf16" else 4
    kept = settings.checkpoint.keep + settings.checkpoint.keep_best + 1  # the next is committed before one goes
    found = {
        f"checkpoints ({kept} at most)": kept * 12 * model.trainable,
        "export": export * model.total,
        "prepared data and its cache": prepared,
    }
    if model.adapter:
        found["adapter"] = FP32 * model.trainable
    return found


def _optimizer(settings: StageSettings, shard: int) -> int:
    masters_are_weights = not settings.zero and settings.precision == "fp32"
    return (8 if masters_are_weights else 12) * shard


def _offloaded_gradients(settings: StageSettings, shard: int, workers: int) -> int:
    """In host memory: fp32 gradients, the way back to the GPU, and, with accumulation, the sum."""
    return shard * (FP32 + precision_bytes(settings) * (2 if settings.accumulation(workers) > 1 else 1))


def _buckets(settings: StageSettings, model: Model, workers: int) -> tuple[int, int]:
    """Bytes of the gradient bucket, and of what its reduction needs beside it."""
    width = precision_bytes(settings)
    if not settings.zero:
        # One gradient at a time in the model's precision; over several workers some are reduced together.
        together = FP32 * (min(model.trainable, _REDUCED_AT_ONCE) + model.largest) if workers > 1 else 0
        return 0, max(width * model.largest, together)
    elements = bucket_elements(settings, model)
    return width * elements, FP32 * min(elements, model.trainable)


def _update(settings: StageSettings, shard: int) -> int:
    """fp32 gradients are laid end to end once more where they were not summed so."""
    return FP32 * shard if settings.zero and settings.precision == "fp32" else 0
