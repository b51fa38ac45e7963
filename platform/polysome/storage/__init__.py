"""Storage: the same file operations on a local folder and on any fsspec URL."""

from polysome.storage.files import (
    MIRROR_VARIABLE,
    absent_fix,
    absolute,
    exists,
    fingerprint,
    glob,
    join,
    list_folder,
    make_folder,
    open_atomic,
    read_json,
    remove,
    require_folder_writable,
    resolve,
    version,
    write_json,
)

__all__ = [
    "MIRROR_VARIABLE",
    "absent_fix",
    "absolute",
    "exists",
    "fingerprint",
    "glob",
    "join",
    "list_folder",
    "make_folder",
    "open_atomic",
    "read_json",
    "remove",
    "require_folder_writable",
    "resolve",
    "version",
    "write_json",
]
