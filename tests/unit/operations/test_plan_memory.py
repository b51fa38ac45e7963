"""Memory by part: what each setting adds and takes away."""

import pytest

from polysome.models.backbone import ModelSource
from polysome.models.trainability import Rule
from polysome.operations.plan_memory import host_memory, worker_memory
from polysome.operations.plan_model import Batch, Model, examine
from polysome.training.config import StageSettings

MODEL = ModelSource(
    config={
        "model_type": "llama",
        "vocab_size": 1000,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    }
)
BATCH = Batch(documents=4, document_length=128, target_share=1.0)
ALL = [Rule(match=".", mode="full")]


def settings(**changes: object) -> StageSettings:
    return StageSettings.model_validate(
        {"trainability": [{"match": ".", "mode": "full"}], "optimizer": {"learning_rate": 1e-4}, "max_updates": 1}
        | changes
    )


@pytest.fixture(scope="module")
def model() -> Model:
    return examine(MODEL, ALL, BATCH, "bf16")


def test_parts_add_up_and_are_those_of_zero_2(model: Model) -> None:
    memory = worker_memory(settings(), model, 4, cuda=True)
    assert memory.total == sum(memory.parts.values())
    assert memory.parts["weights"] == 2 * model.total
    assert memory.parts["optimizer"] == 12 * model.trainable // 4
    assert worker_memory(settings(zero=0), model, 4, cuda=True).parts["optimizer"] == 12 * model.trainable
    in_fp32 = worker_memory(settings(zero=0, precision="fp32"), model, 4, cuda=True)
    assert in_fp32.parts["optimizer"] == 8 * model.trainable


def test_offload_moves_the_optimizer_to_the_host(model: Model) -> None:
    here, away = (settings(offload=offload) for offload in (False, True))
    assert worker_memory(away, model, 4, cuda=True).parts["optimizer"] == 0
    assert worker_memory(away, model, 4, cuda=True).total < worker_memory(here, model, 4, cuda=True).total
    # On a CPU it is the same memory, and what would be on its way from and to a GPU comes on top.
    assert worker_memory(away, model, 4, cuda=False).total > worker_memory(here, model, 4, cuda=False).total
    assert sum(host_memory(away, model, 4, 4).values()) >= 12 * model.trainable


def test_gradient_checkpointing_keeps_inputs_alone(model: Model) -> None:
    whole, inputs = (worker_memory(settings(gradient_checkpointing=on), model, 4, cuda=True) for on in (False, True))
    assert inputs.parts["activations"] < whole.parts["activations"]
    assert model.kept.layer_input == BATCH.tokens * 256 * 2
    assert min(model.kept.layers) > model.kept.layer_input


def test_activations_are_counted_by_what_trains() -> None:
    """A frozen matrix needs no input; LoRA needs it, and what lies between its halves."""
    norms = examine(MODEL, [Rule(match="norm$", mode="full")], BATCH, "bf16")
    both = [Rule(match="_proj$", mode="lora", rank=8, alpha=8), Rule(match="norm$", mode="full")]
    lora = examine(MODEL, both, BATCH, "bf16")
    assert norms.kept.layers[1] < lora.kept.layers[1]


def test_logits_are_those_of_targets() -> None:
    some = examine(MODEL, ALL, Batch(4, 128, 0.25), "bf16")
    assert some.kept.logits == 4 * 32 * 1000


def test_counted_activations_equal_those_of_a_real_forward_pass() -> None:
    """What autograd saves on the CPU, counted there, against the count on the meta device."""
    import torch

    from polysome.operations.plan_measure import Rehearsal, micro_batch, shallow
    from polysome.training.batch import PackedLanguageModel

    causal = shallow(dict(MODEL.config or {}), 4, seed=1)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*causal.parameters(), *causal.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage
        return tensor

    rehearsal = Rehearsal(
        settings=settings(), model=dict(MODEL.config or {}), cases=[(4, 1)], documents=4, document_length=128,
        target_share=1.0,
    )  # fmt: skip
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        PackedLanguageModel(causal)(micro_batch(rehearsal, seed=1))
    counted = examine(MODEL, ALL, BATCH, "fp32", on_cpu=True).kept
    real = sum(storage.nbytes() for storage in saved.values())
    assert sum(counted.layers) + counted.outside == pytest.approx(real, rel=0.02)
