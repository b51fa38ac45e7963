"""Meters that tell a test what was measured, in place of Ray's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import pytest

from polysome.data import meters

Measured = dict[str, dict[tuple[str, ...], list[float]]]
"""Name -> values of the tags, in the order in which they were declared -> what was told, in order."""


class _Meter:
    """What Ray's meters ask for: every declared tag and no other, texts as tags, positive steps, names used once."""

    def __init__(
        self,
        found: Measured,
        kind: str,
        name: str,
        description: str,
        tag_keys: tuple[str, ...],
        boundaries: list[float] | None = None,
    ) -> None:
        assert name not in found, f"{name} is made twice"
        assert description
        assert (boundaries is not None) == (kind == "Histogram")
        assert name.endswith("_total") == (kind == "Counter")
        self._kind, self._keys, self._values = kind, tag_keys, found.setdefault(name, {})

    def inc(self, value: float = 1.0, tags: Mapping[str, str] | None = None) -> None:
        assert value > 0
        self.observe(value, tags)

    def observe(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        told = dict(tags or {})
        assert sorted(told) == sorted(self._keys)
        assert all(isinstance(text, str) for text in told.values())
        self._values.setdefault(tuple(told[key] for key in self._keys), []).append(value)

    set = observe


@contextmanager
def recorded() -> Iterator[Measured]:
    """What is measured in the block."""
    made = (meters.counter, meters.gauge, meters.histogram)
    found: Measured = {}
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("Counter", "Gauge", "Histogram"):
            patch.setattr(f"ray.util.metrics.{kind}", partial(_Meter, found, kind))
        for function in made:
            function.cache_clear()
        try:
            yield found
        finally:
            for function in made:
                function.cache_clear()
