"""Local copies of remote folders, for libraries that read from a local disk alone."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from fsspec.core import url_to_fs

from polysome.config import DataError
from polysome.storage.files import fingerprint, join

CACHE_VARIABLE = "POLYSOME_CACHE"


def cache_folder(kind: str) -> str:
    """The local cache for `kind` of derived files, made when absent: below `POLYSOME_CACHE`, or `~/.cache/polysome`."""
    root = os.environ.get(CACHE_VARIABLE) or os.path.join(os.path.expanduser("~"), ".cache", "polysome")
    folder = os.path.join(root, kind)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return folder


def local_folder(url: str) -> str:
    """A local path that holds what stands at `url`: the path itself, or a cached copy of a remote folder.

    One machine fetches one content once: the copy is kept under a hash of address, names, sizes and versions of the
    files, which the storage lists without reading them, and it appears whole or not at all.

    Something that is neither a URL nor an existing folder is returned as it is (a hub id, or a mistake that its
    reader reports).

    Raises:
        DataError: nothing stands at the URL.
    """
    if "://" not in url:
        path = os.path.expanduser(url)
        return path if os.path.isdir(path) else url
    filesystem, path = url_to_fs(url)
    if "file" in filesystem.protocol:
        return str(path)
    if not filesystem.isdir(path):
        raise DataError(f"no such folder: {url}", where=url, fix="check the address, or run the job that makes it")
    files = sorted(filesystem.find(path))
    listing = [[name, filesystem.info(name).get("size"), str(filesystem.ukey(name))] for name in files]
    target = os.path.join(cache_folder("folders"), fingerprint([url, listing]))
    with only_one(target):
        if not os.path.isdir(target):
            temporary = f"{target}.{uuid4().hex}.tmp"
            for name in files:
                destination = join(temporary, os.path.relpath(name, path))
                os.makedirs(os.path.dirname(destination), exist_ok=True)
                filesystem.get_file(name, destination)
            os.rename(temporary, target)
    return target


@contextmanager
def only_one(path: str) -> Iterator[None]:
    """Hold `<path>.lock` against other processes of this machine; the kernel frees it when the holder dies."""
    with open(f"{path}.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
