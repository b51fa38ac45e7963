"""Memory of a data worker: large arrays are kept for the next block instead of given back to the system."""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1


@cache
def keep_memory() -> None:
    """Tell this process's allocator to keep what it has got, once.

    glibc maps every large array anew and unmaps it when it is dropped; paging in tens of megabytes again for each block
    is then up to half of a worker's time. The price is that the process keeps its peak. Other C libraries have no
    `mallopt`, and are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_MMAP_THRESHOLD, 1 << 30)
    mallopt(_TRIM_THRESHOLD, _LARGEST)
