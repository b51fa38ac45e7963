"""Adapter folders in PEFT's format: what one holds, and whether it belongs to a base model."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from polysome.config import Config, ConfigurationError, DataError, validate
from polysome.storage import exists, fingerprint, join, list_folder, read_json
from polysome.storage.local import local_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"


class Base(Config):
    """`base.json`: the base that an adapter belongs to."""

    format: Literal[1] = 1
    model: str | None
    """Folder or hub id that the stage started from; None: weights drawn from a configuration and a seed."""
    fingerprint: str
    """Of `weights`."""
    weights: dict[str, str]
    """What `digests` says of the base's weights that the adapter does not bring itself."""


def digests(parameters: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """16 hex digits of the SHA-256 of each tensor's shape and values in bf16, whatever its dtype and device.

    About 1 GB of bf16 a second. Rounding to bf16 gives a base one digest, in whichever precision it is held.
    """
    import torch

    found = {}
    for name, value in parameters.items():
        digest = hashlib.sha256(str(tuple(value.shape)).encode())
        digest.update(value.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().data)
        found[name] = digest.hexdigest()[:16]
    return found


def base_name(name: str) -> str:
    """The name that a parameter has in the base without adapters, from that in a model whose layers PEFT wraps."""
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def require_adapter_files(url: str) -> list[str]:
    """The names in a folder that holds a PEFT adapter.

    Raises:
        DataError: adapter_config.json or the weights are missing, or the weights are a pickle file.
    """
    names = list_folder(url)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if name not in names:
            raise DataError(
                f"no adapter at {url}: {name} is missing", where=url, fix="name the adapter/ folder of a training run"
            )
    return names


def check_base(model: PreTrainedModel, adapter_folder: str) -> None:
    """Refuse an adapter for another base. An adapter without base.json, made elsewhere, is held against shapes alone.

    Nothing is done to the model: shapes are tried on a copy that has no weights.

    Args:
        model: the base as it was loaded, in any dtype; weights that the adapter brings itself may differ, and other
            adapters may be on it.
        adapter_folder: local path or URL.

    Raises:
        DataError: the folder holds no adapter.
        ConfigurationError: the adapter belongs to a model of other shapes, a weight is not that of its base, or it is
            of a kind that is no change of layers (prompt and prefix tuning).
    """
    require_adapter_files(adapter_folder)
    folder = local_folder(adapter_folder)
    record = validate(Base, read_json(join(folder, BASE)), where=BASE) if exists(join(folder, BASE)) else None
    if obstacle := _obstacle(model, folder):
        source = record.model if record else read_json(join(folder, ADAPTER_CONFIG)).get("base_model_name_or_path")
        raise ConfigurationError(
            f"the adapter does not fit this model: {obstacle}", where=adapter_folder, fix=_load_on(source)
        )
    if record is None:
        logger.warning("%s has no %s: that its base is this one was checked by shapes alone", adapter_folder, BASE)
        return
    parameters = {base_name(name): value for name, value in model.named_parameters(remove_duplicate=False)}
    actual = digests({name: parameters[name] for name in record.weights if name in parameters})
    other = [name for name, digest in record.weights.items() if actual.get(name) != digest]
    if other:
        raise ConfigurationError(
            f"the adapter belongs to another base: of {len(record.weights)} weights that it rests on {len(other)} "
            f"differ, the first is {other[0]} (fingerprint {record.fingerprint}, this base has "
            f"{fingerprint(actual)})",
            where=adapter_folder,
            fix=_load_on(record.model),
        )


def _load_on(base: Any) -> str:
    return f"load it on {base or 'the base that it was trained on'}, or use the merged export of its run"


def _obstacle(model: PreTrainedModel, folder: str) -> str | None:
    """Why the adapter in a local folder does not fit the model, tried on a copy that has no weights."""
    import torch
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = True
    if config.is_prompt_learning:
        return f"{config.peft_type.value} changes prompts and not layers"
    with torch.device("meta"):
        hollow = AutoModelForCausalLM.from_config(copy.deepcopy(model.config))
        try:
            wrapped = PeftModel(hollow, config)
        except ValueError as error:  # PEFT's word for modules that are not there.
            return " ".join(str(error).split())[:300]
        expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    wanted = {name: tuple(value.shape) for name, value in expected.items()}
    with safe_open(join(folder, ADAPTER_WEIGHTS), "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if missing := sorted(set(wanted) - set(found)):
        return f"its file lacks {len(missing)} weights that it needs here, the first is {missing[0]}"
    if unknown := sorted(set(found) - set(wanted)):
        return f"it has {len(unknown)} weights that have no place here, the first is {unknown[0]}"
    for name, shape in found.items():
        if shape != wanted[name]:
            return f"its {name} has shape {shape}, and here it needs {wanted[name]}"
    return None
