"""Files on any fsspec URL: open, checksum, atomic write, mirror."""

import errno
import hashlib
import json
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import urlsplit
from uuid import uuid4

import fsspec
from fsspec.core import url_to_fs

from polysome.config import ConfigurationError, DataError, ResourceError

MIRROR_VARIABLE = "POLYSOME_MIRROR"


def join(root: str, *parts: str) -> str:
    """Join URL parts with '/'; works for local paths and for fsspec URLs."""
    return posixpath.join(root.rstrip("/") if root != "/" else root, *parts)


def absolute(url: str) -> str:
    """Make a local path absolute, so that it means the same in every worker; leave URLs as they are."""
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))


def exists(url: str) -> bool:
    """Whether a file or folder stands at `url`."""
    filesystem, path = url_to_fs(url)
    return bool(filesystem.exists(path))


def make_folder(url: str) -> None:
    """Make a folder and its parents; no error when it exists."""
    filesystem, path = url_to_fs(url)
    filesystem.makedirs(path, exist_ok=True)


def remove(url: str) -> None:
    """Remove a file or a folder with all it holds; no error when nothing is there."""
    filesystem, path = url_to_fs(url)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def list_folder(url: str) -> list[str]:
    """The names (not paths) in a folder, sorted; empty when the folder does not exist."""
    filesystem, path = url_to_fs(url)
    if not filesystem.isdir(path):
        return []
    return sorted(posixpath.basename(entry.rstrip("/")) for entry in filesystem.ls(path, detail=False))


def glob(pattern: str) -> list[str]:
    """Paths that match an fsspec glob, sorted, with the protocol of `pattern` kept."""
    filesystem, path = url_to_fs(pattern)
    found = sorted(str(entry) for entry in filesystem.glob(path))
    return found if "://" not in pattern else [filesystem.unstrip_protocol(entry) for entry in found]


@contextmanager
def open_atomic(url: str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open `url` for writing so that it appears whole or not at all.

    The bytes go to a hidden sibling and are moved into place when the block ends without an error;
    on an error the sibling is removed and whatever stood at `url` stays.

    Raises:
        ResourceError: the disk is full, or a quota is reached.
    """
    filesystem, path = url_to_fs(url)
    folder, name = posixpath.split(path)
    if folder:
        filesystem.makedirs(folder, exist_ok=True)
    temporary = posixpath.join(folder, f".{name}.{uuid4().hex}.tmp")
    try:
        with filesystem.open(temporary, mode) as handle:
            yield handle
            handle.flush()
            if hasattr(handle, "fileno") and filesystem.protocol in ("file", ("file", "local")):
                os.fsync(handle.fileno())
        filesystem.mv(temporary, path)
    except BaseException as error:
        if filesystem.exists(temporary):
            filesystem.rm(temporary)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                "no space is left", where=url, fix="free some, or name another folder; what was finished stays"
            ) from error
        raise


def write_json(url: str, content: Any) -> None:
    """Write JSON atomically, two-space indented; NaN and infinities, which JSON has not, are a ValueError."""
    with open_atomic(url, "w") as handle:
        json.dump(content, handle, indent=2, ensure_ascii=False, allow_nan=False)
        handle.write("\n")


def read_json(url: str) -> Any:
    """Read JSON.

    Raises:
        DataError: there is no such file, or it is not JSON.
    """
    try:
        with fsspec.open(url, "r") as handle:
            return json.load(handle)
    except FileNotFoundError as error:
        raise DataError(
            f"no such file: {url}", where=url, fix="check the path, or run the job that makes it"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error}", where=url, fix="remove the file and run its job again") from error


def resolve(uri: str, mirror_path: str | None = None) -> str:
    """Where to read a declared `uri` from: below `POLYSOME_MIRROR` when that is set, else the uri itself.

    A mirror holds each file at its declared `mirror_path`, or, where none is declared, at `<host>/<path>` of the uri.
    Generated data (`planted://`) and local paths are never mirrored. Of a chained address
    (`zip://member::https://host/archive.zip`) a mirror holds the archive, or, at a declared `mirror_path`, the member.
    """
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    inside, chained, outer = uri.rpartition("::")
    parts = urlsplit(outer)
    if not mirror or parts.scheme in ("planted", "", "file"):
        return uri
    if chained and mirror_path is None:
        return f"{inside}::{resolve(outer)}"
    return join(absolute(mirror), mirror_path or f"{parts.netloc}{parts.path}")


def absent_fix(url: str) -> str:
    """What to do when nothing stands at `url`."""
    mirror = os.environ.get(MIRROR_VARIABLE)
    if mirror and not url.startswith(absolute(mirror)):
        return "check the path or address in the data set's spec"
    if mirror:
        return f"put the file below {MIRROR_VARIABLE}={mirror}, or unset {MIRROR_VARIABLE} to read the public source"
    return f"check the address and the network, or set {MIRROR_VARIABLE} to a folder or URL that holds a copy"


def version(url: str) -> str:
    """What the storage says of the file's content without reading it: size, and time or tag of the last change.

    Raises:
        DataError: nothing is there.
    """
    try:
        filesystem, path = url_to_fs(url)
        info = filesystem.info(path)
    except FileNotFoundError as error:
        raise DataError(f"no such file: {url}", where=url, fix=absent_fix(url)) from error
    told = ("size", "mtime", "LastModified", "last_modified", "ETag", "etag", "updated", "created", "mimetype")
    return fingerprint({name: str(info[name]) for name in told if info.get(name) is not None})


def fingerprint(content: Any) -> str:
    """A short hash (16 hex digits) of JSON-able content, the same for equal content in every process."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def require_folder_writable(url: str) -> None:
    """Write and remove a probe below `url`.

    Raises:
        ConfigurationError: nothing can be written there.
    """
    probe = join(url, f".probe-{uuid4().hex}")
    try:
        with open_atomic(probe) as handle:
            handle.write(b"ok")
        remove(probe)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write below {url}: {error}", where="--runs", fix="name a folder or URL you may write to"
        ) from error
