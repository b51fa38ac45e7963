"""What can be known about a server before anything starts: the model folder is whole, who may ask, the port is free."""

import contextlib
import ipaddress
import socket

from polysome.config import ConfigurationError, ResourceError
from polysome.inference.folder import require_model_folder
from polysome.serving.config import ServeConfig
from polysome.serving.keys import KeyRing
from polysome.storage import absolute, exists, join

_FOLDERS = ("keys", "adapters", "calibration", "runs", "batches")


def check(config: ServeConfig) -> ServeConfig:
    """See `resolved`; the port must be free, too.

    Raises:
        ConfigurationError: others reach the host and there are no keys; the keys cannot be used.
        DataError: the folder lacks config, safetensors weights, tokenizer or chat template.
        ResourceError: something listens on the port.
    """
    config = resolved(config)
    require_free_port(config.host, config.port)
    return config


def resolved(config: ServeConfig) -> ServeConfig:
    """The configuration with the model's folder found and all paths absolute, so that they mean the same in every
    process; its keys can be used, or it needs none.

    Raises:
        ConfigurationError, DataError: see `check`.
    """
    if config.keys is not None:
        KeyRing(config.keys)
    elif not is_loopback(config.host):
        raise ConfigurationError(
            f"others reach {config.host}, and without keys everybody there may ask",
            where="keys",
            fix="`polysome keys create` makes a key and its file: name that as `keys`; or listen on host: 127.0.0.1",
        )
    named = {name: getattr(config, name) for name in _FOLDERS}
    paths = {name: absolute(path) for name, path in named.items() if path is not None}
    return config.model_copy(update={"model": model_folder(config.model), **paths})


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine and is reached from nowhere else."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # ::ffff:127.0.0.1, as a socket for both families tells a client of the older one.
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (inner or address).is_loopback


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
