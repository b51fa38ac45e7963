"""Adapters: PEFT folders put on a loaded model by name, and switched while it answers."""

import copy
from typing import Any

from polysome.config import ConfigurationError
from polysome.inference.folder import ADAPTER_WEIGHTS, require_adapter_folder
from polysome.storage import join
from polysome.storage.local import local_folder


class Adapters:
    """The adapters of one model, which answers without any until `activate` names one.

    Args:
        model: a transformers model; its layers are wrapped in place when the first adapter comes.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._peft: Any = None
        self.active: str | None = None

    def load(self, url: str, name: str) -> None:
        """Load the adapter of a folder (path or fsspec URL); which one is active does not change.

        Nothing is touched before a copy without weights has shown that the adapter fits. That its base has the same
        weights, and not only the same shapes, is not checked.

        Raises:
            DataError: the folder holds no adapter with safetensors weights.
            ConfigurationError: the name is taken, the adapter belongs to a model of other shapes, or it is of a kind
                that is no change of layers (prompt and prefix tuning).
        """
        from peft import PeftConfig, PeftModel

        if self._peft is not None and name in self._peft.peft_config:
            raise ConfigurationError(f"there is an adapter {name!r} already", where=url, fix="give it another name")
        require_adapter_folder(url)
        folder = local_folder(url)
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = True
        if obstacle := _obstacle(self._model, config, folder):
            base = config.base_model_name_or_path
            raise ConfigurationError(
                f"the adapter does not fit this model: {obstacle}",
                where=url,
                fix=f"load it on {base or 'the base that it was trained on'}, or use a merged export",
            )
        device = str(self._model.get_input_embeddings().weight.device)
        if self._peft is None:
            self._peft = PeftModel(self._model, config, adapter_name=name)
        self._peft.load_adapter(folder, name, torch_device=device)
        self._peft.eval()
        self.activate(self.active)

    def activate(self, name: str | None) -> None:
        """Answer with one adapter from now on, or without any.

        Raises:
            ConfigurationError: no such adapter is loaded.
        """
        names = [] if self._peft is None else list(self._peft.peft_config)
        if name is not None and name not in names:
            raise ConfigurationError(
                f"no adapter {name!r} is loaded", where="adapter", fix=f"load it, or choose of: {', '.join(names)}"
            )
        self.active = name
        if self._peft is None:
            return
        if name is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(name, inference_mode=True)


def _obstacle(model: Any, config: Any, folder: str) -> str | None:
    """Why the adapter in a local folder does not fit the model, tried on a copy that has no weights."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

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
