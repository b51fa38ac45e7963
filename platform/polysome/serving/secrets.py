"""Files that hold secrets: written 0600 in a folder that nobody else writes to, and not read where others could."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from uuid import uuid4

from polysome.config import ConfigurationError
from polysome.storage import absolute

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Stamp:
    """What changes with a file's content, its permissions or its place."""

    inode: int
    changed: int
    """Nanoseconds; of the inode, so that a `chmod` counts too."""
    size: int


def stamp(path: str) -> Stamp | None:
    """Of the file at `path`; None where there is none. Costs one look at the inode."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Stamp(found.st_ino, found.st_ctime_ns, found.st_size)


def read_private(path: str) -> bytes:
    """The content of a file that its owner alone may read, and that belongs to this user or to root.

    Raises:
        ConfigurationError: it is missing, not a plain file, or others could have read or replaced it.
    """
    try:
        # Not to hang on a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}", where=path, fix="check the path, and whose the file is"
        ) from error
    with os.fdopen(descriptor, "rb") as handle:
        # Of the open file: whatever is put in its place from now on is not what is read.
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigurationError(f"{path} is no file", where=path, fix="name the file")
        if found.st_uid not in (os.geteuid(), 0):
            raise ConfigurationError(f"{path} belongs to another user", where=path, fix=f"chown {os.geteuid()} {path}")
        if found.st_mode & _OTHERS:
            raise ConfigurationError(
                f"{path} holds secrets and others may use it (mode {stat.S_IMODE(found.st_mode):04o})",
                where=path,
                fix=f"chmod 600 {path}, and take the secrets in it for known",
            )
        _require_safe_folder(os.path.dirname(absolute(path)))
        return handle.read()


def write_private(path: str, content: bytes) -> None:
    """Write a file that only its owner may read, in a folder as `make_private_folder` makes it; it appears whole or not
    at all.

    Raises:
        ConfigurationError: others may write to the folder, or nothing can be written there.
    """
    path = os.path.realpath(absolute(path))
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid4().hex}.tmp")
    make_private_folder(folder)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {path}: {error.strerror}", where=path, fix="name a file in a folder of your own"
        ) from error


def make_private_folder(folder: str) -> None:
    """Make a folder for secrets, mode 0700; one that is there is left as it is.

    Raises:
        ConfigurationError: others may write to it, or it cannot be made.
    """
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        _require_safe_folder(folder)
    except OSError as error:
        raise ConfigurationError(
            f"cannot make {folder}: {error.strerror}", where=folder, fix="name a folder of your own"
        ) from error


def _require_safe_folder(folder: str) -> None:
    found = os.stat(folder)
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if others_write and not found.st_mode & stat.S_ISVTX:
        raise ConfigurationError(
            f"others may replace the files in {folder} (mode {stat.S_IMODE(found.st_mode):04o})",
            where=folder,
            fix=f"chmod 700 {folder}, or keep secrets in a folder of their own",
        )
