"""Configuration: a frozen base model, YAML with dotted overrides, and errors that say what, where and how to mend."""

from polysome.config.errors import ConfigurationError, DataError, PolysomeError, ResourceError
from polysome.config.loading import Config, apply_overrides, load, read_yaml, validate

__all__ = [
    "Config",
    "ConfigurationError",
    "DataError",
    "PolysomeError",
    "ResourceError",
    "apply_overrides",
    "load",
    "read_yaml",
    "validate",
]
