"""What is kept of an adapter's versions: the manifest of each, and what others are told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from polysome.config import Config
from polysome.serving.adapter_checks import FILE_NAME, File
from polysome.storage import fingerprint

NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
"""Of an adapter."""


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
    adapter_fingerprint: str = ""
    """What an evaluation of this adapter tells as its `adapter_fingerprint`."""

    @property
    def id(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


class Manifest(Config):
    """`manifest.json`: one version."""

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=rf"^{NAME}$")]
    version: Annotated[int, Field(ge=1)]
    base: str
    """Where the base model lay when the version was published."""
    base_fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    adapter_fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """Of what shapes an answer, wherever the adapter lies; an evaluation of it tells the same."""
    rank: Annotated[int, Field(ge=1)]
    """The largest of its layers."""
    files: Annotated[dict[Annotated[str, Field(pattern=FILE_NAME)], File], Field(min_length=1)]
    published: AwareDatetime
    user: str = ""
    note: str = ""

    @property
    def fingerprint(self) -> str:
        """Of what answers: the base and the files' content; the same adapter published again has the same."""
        return fingerprint([self.base_fingerprint, {name: file.sha256 for name, file in self.files.items()}])


@dataclass(frozen=True)
class Damaged:
    """A version whose manifest cannot be read."""

    name: str
    version: int
    problem: str
