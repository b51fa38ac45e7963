"""Ray's failures in the product's own terms: the PolysomeError that a task, actor or training worker raised."""

from typing import Any

from polysome.config import PolysomeError


def cause_of(error: BaseException) -> PolysomeError | None:
    """The product's own error inside what Ray made of it, plain and without Ray's wrapping; None when there is none.

    Knows task and actor errors (`cause`), Ray Train's worker and controller failures, and `raise … from …`.
    """
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        current = waiting.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        # Ray raises task errors as a class made of its own and the cause's; the plain one is its `cause`.
        inner = getattr(current, "cause", None)
        if isinstance(current, PolysomeError) and inner is None:
            return current
        waiting += [inner, *getattr(current, "worker_failures", {}).values()]
        waiting += [getattr(current, "controller_failure", None), getattr(current, "_base_exc", None)]
        waiting.append(current.__cause__)
    return None
