"""The adapter registry: published PEFT adapters in versions, each with a manifest of its files' hashes.

Below the registry's folder or URL (any fsspec):

    NAME/current.json            the version that answers under the name
    NAME/3/adapter_config.json   the files of version 3, never changed
    NAME/3/manifest.json         written last: without it there is no such version

Whoever may write to the registry decides what is served: its storage's permissions are its guard.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from uuid import uuid4

from fsspec.core import url_to_fs
from pydantic import Field

from polysome.config import Config, ConfigurationError, DataError, ResourceError, validate
from polysome.inference.folder import adapter_fingerprint, model_fingerprint
from polysome.models.adapter import ADAPTER_CONFIG, BASE
from polysome.serving.adapter_checks import check_adapter, copy_adapter, describe, differing
from polysome.serving.adapter_manifest import NAME, Damaged, Manifest, Published
from polysome.serving.checks import model_folder
from polysome.storage import absolute, exists, join, list_folder, read_json, write_json
from polysome.storage.local import cache_folder, only_one

__all__ = ["Damaged", "Manifest", "Published", "Registry"]

log = logging.getLogger(__name__)

_MODEL = re.compile(rf"({NAME})(?:@([1-9][0-9]{{0,8}}))?")
_MANIFEST, _CURRENT, _RESERVED = "manifest.json", "current.json", ".reserved"
_FRESH_SECONDS = 2.0
_MOST_REMEMBERED = 4096

ConfigT = TypeVar("ConfigT", bound=Config)


class _Current(Config):
    version: Annotated[int, Field(ge=1)]


class Registry:
    """Publish, find, list, fetch and roll back.

    Args:
        root: folder or URL.
        base: fingerprint of a model; where given, adapters of other models are not found and not listed.
    """

    def __init__(self, root: str, *, base: str | None = None) -> None:
        self._root, self._base = absolute(root), base
        self._found: dict[str, tuple[float, Published | None]] = {}
        self._warned: set[tuple[str, str]] = set()

    def find(self, model: str) -> Published | None:
        """The version that `NAME` (its current one) or `NAME@VERSION` means; None where there is none, and for anything
        that is no such name, for which nothing is looked up.

        What was found is remembered for two seconds.
        """
        parts = _MODEL.fullmatch(model)
        if parts is None:
            return None
        now = time.monotonic()
        until, found = self._found.get(model, (0.0, None))
        if until <= now:
            version = int(parts[2]) if parts[2] else self.current(parts[1])
            found = self._published(parts[1], version) if version else None
            if len(self._found) >= _MOST_REMEMBERED:
                self._found.clear()
            self._found[model] = (now + _FRESH_SECONDS, found)
        return found

    def list(self) -> list[Published]:
        """The current version of every adapter, by name. One whose files are damaged is left out, with a warning."""
        found = (self._readable(name) for name in self.names())
        return [published for published in found if published is not None]

    def _readable(self, name: str) -> Published | None:
        try:
            return self.find(name)
        except (DataError, ConfigurationError) as error:
            self._warn(name, str(error))
            return None

    def _warn(self, name: str, why: str) -> None:
        """Once for every cause."""
        if (name, why) not in self._warned:
            log.warning("adapter %r is not listed: %s", name, why)
        self._warned.add((name, why))

    def names(self) -> Sequence[str]:
        """Of all adapters, whatever their base."""
        return [name for name in _listed(self._root) if re.fullmatch(NAME, name)]

    def current(self, name: str) -> int | None:
        """The version that answers under a name; None where nothing was published."""
        found = _load(_Current, join(self._root, _require_name(name), _CURRENT))
        return found.version if found else None

    def versions(self, name: str) -> Sequence[Manifest | Damaged]:
        """All of one adapter, oldest first."""
        found: list[Manifest | Damaged] = []
        for number in sorted(
            int(entry) for entry in _listed(join(self._root, _require_name(name))) if entry.isdecimal()
        ):
            try:
                manifest = self._manifest(name, number)
            except (DataError, ConfigurationError) as error:
                found.append(Damaged(name, number, error.what))
            else:
                found += [manifest] if manifest is not None else []
        return found

    def publish(self, folder: str, name: str, *, model: str | None = None, user: str = "", note: str = "") -> Published:
        """Make an adapter the next version of a name, and the current one.

        Args:
            folder: PEFT folder, or the training run that wrote one; path or URL.
            name: new, or one that has versions.
            model: folder of the base model, or of its training run; None: the one that the adapter says it was
                trained on.
            user: who publishes.
            note: what is new.

        Raises:
            DataError: the folder holds no adapter, or more than one: pickle files, links, folders.
            ConfigurationError: the name is no name, the adapter is of a kind that is not served, or of another base.
            ResourceError: nothing can be written there.
        """
        _require_name(name)
        source = absolute(folder)
        if not exists(join(source, ADAPTER_CONFIG)) and exists(join(source, "adapter")):
            source = join(source, "adapter")
        with tempfile.TemporaryDirectory(prefix="polysome-adapter-") as scratch:
            copy_adapter(source, scratch)
            model = model_folder(model or _base_of(scratch, source))
            rank = check_adapter(scratch, model, where=source)
            base = model_fingerprint(model)
            if self._base not in (None, base):
                raise ConfigurationError(
                    f"{model} is not the model of this registry (fingerprint {base}, not {self._base})", where="base"
                )
            try:
                made = Manifest(
                    name=name,
                    version=self._reserve(name),
                    base=model,
                    base_fingerprint=base,
                    adapter_fingerprint=adapter_fingerprint(scratch),
                    rank=rank,
                    files=describe(scratch),
                    published=datetime.now(UTC).replace(microsecond=0),
                    user=user,
                    note=note,
                )
                self._commit(made, scratch)
            except OSError as error:
                raise ResourceError(f"cannot write to the adapter registry: {error}", where=self._root) from error
        if (self.current(name) or 0) < made.version:
            # Not where a later version was published meanwhile.
            self._make_current(name, made.version)
        return self._told(made)

    def rollback(self, name: str, version: int | None = None) -> Published:
        """Let an earlier version (None: the one before the current one), or any other, answer under a name.

        Raises:
            ConfigurationError: there is no such version.
            DataError: it is damaged, or so is what says which is the current one.
        """
        if version is None:
            known, now = [entry.version for entry in self.versions(name)], self.current(name)
            earlier = [number for number in known if now is not None and number < now]
            if not earlier:
                raise ConfigurationError(f"{name!r} has no earlier version", where=self._root, fix=f"it has {known}")
            version = earlier[-1]
        published = self._require(name, version)
        self._make_current(name, version)
        return published

    def fetch(self, published: Published) -> str:
        """A local folder with the files of a version, each with the hash that its manifest says.

        One machine fetches a version once; its copy is hashed again at every call.

        Raises:
            ConfigurationError: the version is gone, or is another one now.
            DataError: a file is not what was published.
        """
        manifest = self._manifest(published.name, published.version)
        if manifest is None or manifest.fingerprint != published.fingerprint:
            raise ConfigurationError(
                f"adapter {published.id} is gone, or was changed", where=self._root, fix="publish it again"
            )
        target = join(cache_folder("adapters"), manifest.fingerprint)
        with only_one(target):
            if differing(target, manifest.files) is None:
                return target
            shutil.rmtree(target, ignore_errors=True)
            temporary = f"{target}.{uuid4().hex}.tmp"
            os.mkdir(temporary, mode=0o700)
            try:
                filesystem, path = url_to_fs(self._folder(manifest))
                for name in manifest.files:
                    filesystem.get_file(join(path, name), join(temporary, name))
                if changed := differing(temporary, manifest.files):
                    raise DataError(
                        f"{changed} of adapter {published.id} is not what was published",
                        where=self._folder(manifest),
                        fix="find out who changed it; publish the adapter again from its training run",
                    )
                os.rename(temporary, target)
            except FileNotFoundError as error:
                raise DataError(f"a file of adapter {published.id} is gone", where=self._folder(manifest)) from error
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return target

    def _reserve(self, name: str) -> int:
        """The next version number, for this publisher alone."""
        filesystem, path = url_to_fs(join(self._root, name))
        taken = [int(entry) for entry in _listed(join(self._root, name)) if entry.isdecimal()]
        version = max(taken, default=0) + 1
        while True:
            folder = join(path, str(version))
            filesystem.makedirs(folder, exist_ok=True)
            try:
                # Two publishers at once: the storage lets one of them create it.
                with filesystem.open(join(folder, _RESERVED), "xb") as handle:
                    handle.write(b"reserved\n")
            except FileExistsError:
                version += 1
            else:
                return version

    def _commit(self, manifest: Manifest, folder: str) -> None:
        target = self._folder(manifest)
        filesystem, path = url_to_fs(target)
        for name in manifest.files:
            filesystem.put_file(join(folder, name), join(path, name))
        write_json(join(target, _MANIFEST), manifest.model_dump(mode="json"))

    def _make_current(self, name: str, version: int) -> None:
        write_json(join(self._root, name, _CURRENT), _Current(version=version).model_dump())
        self._found.pop(name, None)

    def _require(self, name: str, version: int) -> Published:
        manifest = self._manifest(name, version)
        if manifest is None:
            raise ConfigurationError(
                f"no adapter {name}@{version}", where=self._root, fix="`polysome adapters ls` lists them"
            )
        return self._told(manifest)

    def _published(self, name: str, version: int) -> Published | None:
        manifest = self._manifest(name, version)
        if manifest is None:
            return None
        if self._base not in (None, manifest.base_fingerprint):
            self._warn(name, f"version {version} is of the base {manifest.base_fingerprint}, not of {self._base}")
            return None
        return self._told(manifest)

    def _told(self, manifest: Manifest) -> Published:
        return Published(
            name=manifest.name,
            version=manifest.version,
            folder=self._folder(manifest),
            fingerprint=manifest.fingerprint,
            base_fingerprint=manifest.base_fingerprint,
            adapter_fingerprint=manifest.adapter_fingerprint,
        )

    def _manifest(self, name: str, version: int) -> Manifest | None:
        url = join(self._root, _require_name(name), str(version), _MANIFEST)
        found = _load(Manifest, url)
        if found is not None and (found.name, found.version) != (name, version):
            raise DataError(f"the manifest is of {found.name}@{found.version}", where=url, fix="publish it again")
        return found

    def _folder(self, manifest: Manifest) -> str:
        return join(self._root, manifest.name, str(manifest.version))


def _require_name(name: str) -> str:
    if not re.fullmatch(NAME, name):
        raise ConfigurationError(
            f"{name!r} is no name of an adapter",
            where="name",
            fix="up to 64 small letters, digits, '.', '_' and '-', a letter or digit first",
        )
    return name


def _load(model: type[ConfigT], url: str) -> ConfigT | None:
    """One small file, read in one request, past any listing that the storage remembers."""
    filesystem, path = url_to_fs(url)
    try:
        content: Any = json.loads(filesystem.cat_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ResourceError(f"the adapter registry cannot be read: {error}", where=url) from error
    except ValueError as error:
        raise DataError(f"not JSON: {error}", where=url, fix="publish the adapter again") from error
    return validate(model, content, where=url)


def _listed(url: str) -> list[str]:
    filesystem, path = url_to_fs(url)
    filesystem.invalidate_cache(path)
    return list_folder(url)


def _base_of(folder: str, source: str) -> str:
    named = read_json(join(folder, BASE)).get("model") if exists(join(folder, BASE)) else None
    if not isinstance(named, str):
        raise ConfigurationError("the adapter does not say what its base is", where=source, fix="name it with --base")
    return named
