"""Adapters: PEFT folders put on a loaded model by name, and switched while it answers."""

from typing import Any

from polysome.config import ConfigurationError
from polysome.models.adapter import check_base
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

        Nothing is touched before `check_base` has passed.

        Raises:
            DataError: the folder holds no adapter with safetensors weights.
            ConfigurationError: the name is taken, or the adapter does not belong to the model.
        """
        from peft import PeftConfig, PeftModel

        if self._peft is not None and name in self._peft.peft_config:
            raise ConfigurationError(f"there is an adapter {name!r} already", where=url, fix="give it another name")
        check_base(self._model, url)
        folder = local_folder(url)
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = True
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
