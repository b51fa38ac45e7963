"""API keys: who may ask, what, and until when; their file holds hashes, and a key is told once, when it is made."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, get_args

from pydantic import AwareDatetime, Field

from polysome.config import Config, ConfigurationError, validate
from polysome.serving.secrets import make_private_folder, read_private, stamp, write_private
from polysome.storage import absolute
from polysome.storage.local import only_one

Scope = Literal["infer", "batch", "submit", "admin"]
"""`infer`: ask, and read runs and evaluations; `batch`: batch predictions; `submit`: jobs; `admin`: everything."""

SCOPES: frozenset[Scope] = frozenset(get_args(Scope))

_KEY = re.compile(r"omk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


class Key(Config):
    """What is kept of one key."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    """Its public part: `omk_ID_SECRET`."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the secret, which is 32 random bytes: nothing slower than one SHA-256 is needed."""
    team: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    scopes: Annotated[list[Scope], Field(min_length=1)]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    """None: never."""
    revoked: AwareDatetime | None = None
    """A revoked key stays, so that its id in a log still has a team."""
    note: Annotated[str, Field(max_length=200)] = ""

    def state(self, now: datetime | None = None) -> Literal["active", "expired", "revoked"]:
        """Whether it opens anything."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= (now or datetime.now(UTC)) else "active"


class _File(Config):
    format: Literal[1] = 1
    keys: list[Key] = []


def read(path: str) -> list[Key]:
    """All keys of a file.

    Raises:
        ConfigurationError: it is missing, open to others, or not a file of keys.
    """
    try:
        content = json.loads(read_private(path))
    except ValueError as error:
        raise ConfigurationError("not a file of keys: no JSON", where=path, fix="`polysome keys` writes it") from error
    return validate(_File, content, where=path).keys


def create(path: str, *, team: str, scopes: Sequence[str], expires: datetime | None, note: str = "") -> tuple[Key, str]:
    """Add a key to a file, which is made where it is missing; returns its record, and the key itself, which is kept
    nowhere.

    Raises:
        ConfigurationError: a value is not allowed; others may read the file or replace it.
    """
    secret = secrets.token_urlsafe(32)
    content = {
        "id": secrets.token_hex(6),
        "sha256": _digest(secret),
        "team": team,
        "scopes": sorted(set(scopes)),
        "created": datetime.now(UTC).replace(microsecond=0),
        "expires": expires,
        "note": note,
    }
    key = validate(Key, content, where="the key")
    path = absolute(path)
    make_private_folder(os.path.dirname(path))
    with only_one(path):
        write_private(path, _text([*(read(path) if stamp(path) else []), key]))
    return key, f"omk_{key.id}_{secret}"


def revoke(path: str, key_id: str) -> Key:
    """End a key; gateways notice at their next request.

    Raises:
        ConfigurationError: there is no such key.
    """
    path = absolute(path)
    read_private(path)
    with only_one(path):
        keys = {key.id: key for key in read(path)}
        # The whole key may have been given: the id is in it.
        parts = _KEY.fullmatch(key_id)
        found = keys.get(parts[1] if parts else key_id)
        if found is None:
            raise ConfigurationError(f"no key {key_id!r}", where=path, fix="`polysome keys ls` lists them")
        if found.revoked is None:
            found = found.model_copy(update={"revoked": datetime.now(UTC).replace(microsecond=0)})
            write_private(path, _text(list((keys | {found.id: found}).values())))
    return found


class KeyRing:
    """The keys of a file as a gateway holds them; read again whenever the file changes.

    Raises:
        ConfigurationError: see `read`.
    """

    def __init__(self, path: str) -> None:
        self._path = absolute(path)
        self._stamp = stamp(self._path)
        self._keys = {key.id: key for key in read(self._path)}

    def find(self, text: str) -> Key | None:
        """The record of the key `text`; None for what is no key, or is one that is unknown, revoked or expired.

        Raises:
            ConfigurationError: the file changed and cannot be used; nobody is let in until it can be.
        """
        now = stamp(self._path)
        if now != self._stamp or now is None:
            keys = read(self._path)
            # The stamp from before the reading: a change meanwhile is seen at the next call.
            self._keys, self._stamp = {key.id: key for key in keys}, now
        parts = _KEY.fullmatch(text)
        key = self._keys.get(parts[1]) if parts else None
        if parts is None or key is None or not hmac.compare_digest(_digest(parts[2]), key.sha256):
            return None
        return key if key.state() == "active" else None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _text(keys: list[Key]) -> bytes:
    return (_File(keys=keys).model_dump_json(indent=2) + "\n").encode()
