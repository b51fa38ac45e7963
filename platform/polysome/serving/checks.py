"""What can be known about a server before anything starts: the model folder is whole, the port is free."""

import contextlib
import socket

from polysome.config import ResourceError
from polysome.inference.folder import require_model_folder
from polysome.serving.config import ServeConfig
from polysome.storage import absolute, exists, join


def check(config: ServeConfig) -> ServeConfig:
    """The configuration with the model's folder resolved.

    Raises:
        DataError: the folder lacks config, safetensors weights, tokenizer or chat template.
        ResourceError: something listens on the port.
    """
    folder = model_folder(config.model)
    require_free_port(config.host, config.port)
    return config.model_copy(update={"model": folder})


def model_folder(model: str) -> str:
    """The model folder that `model` names: itself, or the `export` in it where it is a training run's folder.

    Raises:
        DataError: it is no model folder.
    """
    folder = absolute(model)
    export = join(folder, "export")
    if not exists(join(folder, "config.json")) and exists(join(export, "config.json")):
        folder = export
    require_model_folder(folder)
    return folder


def require_free_port(host: str, port: int) -> None:
    """Raise ResourceError when `port` of `host` cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResourceError(
                f"cannot listen on {host}:{port}: {error.strerror}",
                where="port",
                fix="stop what uses the port, or choose another with --port",
            ) from error
