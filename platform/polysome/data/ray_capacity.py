"""Room on the connected Ray cluster: what can never fit is refused, what may fit later is waited for and said."""

import logging
from typing import Any

from polysome.config import ResourceError

logger = logging.getLogger(__name__)


def can_grow() -> bool:
    """Whether the connected cluster may get more nodes: any but the local one that this process started."""
    from ray._private import worker

    node: Any = worker._global_node
    return node is None or not node.is_head()


def require_capacity(what: str, *, cpus: float, gpus: float = 0, where: str, fix: str) -> None:
    """Check that the connected cluster has, or may get, what is needed at once.

    An autoscaling cluster that is idle has no CPUs at all, so there the shortage is logged as a warning.

    Args:
        what: who needs it, as the subject of a sentence.
        cpus, gpus: needed at once.
        where, fix: of the error.

    Raises:
        ResourceError: no cluster is connected, or one that cannot grow has too few CPUs or GPUs.
    """
    import ray

    if not ray.is_initialized():
        raise ResourceError("no Ray cluster is connected", where=where, fix="connect one with ray.init() first")
    total = ray.cluster_resources()
    if cpus <= total.get("CPU", 0) and gpus <= total.get("GPU", 0):
        return
    shortage = (
        f"{what} needs {cpus:g} CPUs and {gpus:g} GPUs, the cluster has {total.get('CPU', 0):g} and "
        f"{total.get('GPU', 0):g}"
    )
    if not can_grow():
        raise ResourceError(shortage, where=where, fix=fix)
    logger.warning("%s now; waiting for it to grow", shortage)
