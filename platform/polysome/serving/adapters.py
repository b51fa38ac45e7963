"""The adapter registry: published PEFT adapters in versions, each with a manifest of its files' hashes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One version of one adapter."""

    name: str
    version: int
    folder: str
    """Where its files lie, below the registry."""
    fingerprint: str
    """Of its manifest, 16 hexadecimal digits."""
    base_fingerprint: str
    """Of the model that it belongs to."""

    @property
    def id(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"
