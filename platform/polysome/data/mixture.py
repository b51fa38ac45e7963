"""Mixtures: how often each example of each source stands in an epoch, counted exactly before any is taken.

A survey says of every file which examples are usable. From it follow, by arithmetic alone, the examples that each pass
over the file takes; the manifest tells the counts.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polysome.config import DataError
from polysome.data.config import PrepareSettings
from polysome.data.duplicates import find_duplicates

Mask = npt.NDArray[np.bool_]

_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class FileSurvey:
    """What the survey found in one file of one source, examples in the order of the file.

    Attributes:
        source: position of the source in the recipe.
        sha256: of the file's content.
        keys: uint64 [examples], equal for equal sequences.
        label_keys: uint64 [examples], equal for equal labels.
        held: int32 [examples], which protected split holds the example, -1 for none.
    """

    source: int
    sha256: str
    keys: npt.NDArray[np.uint64]
    label_keys: npt.NDArray[np.uint64]
    held: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Selection:
    """What an epoch takes.

    Attributes:
        passes: per file, the examples of each pass over it, bool [examples]; no pass: the file is not read.
        duplicates, conflicts, beyond_limit, not_drawn: per source, examples left out because they equal an earlier one,
            contradict another, exceed the source's limit, or exceed the part of the mixture.
    """

    passes: list[list[Mask]]
    duplicates: list[int]
    conflicts: list[int]
    beyond_limit: list[int]
    not_drawn: list[int]


def select(settings: PrepareSettings, files: list[FileSurvey]) -> Selection:
    """Choose the examples of an epoch; a pure function of recipe and survey."""
    count = len(settings.sources)
    usable = [file.held < 0 for file in files]
    duplicates, conflicts = [0] * count, [0] * count
    beyond, not_drawn = [0] * count, [0] * count
    for source in range(count):
        mine = [place for place, file in enumerate(files) if file.source == source]
        duplicates[source], conflicts[source] = _drop_duplicates(settings, files, usable, mine)
        limit = settings.sources[source].limit
        chosen, beyond[source] = _draw([usable[place] for place in mine], limit, _seed(settings, source, 0))
        for place, mask in zip(mine, chosen, strict=True):
            usable[place] = mask
    passes: list[list[Mask]] = [[] for _ in files]
    for group, target in zip(_groups(settings), _targets(settings, files, usable), strict=True):
        mine = [place for place, file in enumerate(files) if file.source in group]
        available = sum(int(usable[place].sum()) for place in mine)
        if target and not available:
            raise DataError(
                f"{settings.sources[group[0]].dataset} has no example left for its part of the mixture",
                where="sources",
                fix="check what is excluded and dropped, or leave the source out",
            )
        full, rest = divmod(target, available) if available else (0, 0)
        drawn, _ = _draw([usable[place] for place in mine], rest, _seed(settings, min(group), 1))
        for place, mask in zip(mine, drawn, strict=True):
            passes[place] += [usable[place]] * (full if usable[place].any() else 0)
            if mask.any():
                passes[place].append(mask)
            elif not full:
                not_drawn[files[place].source] += int(usable[place].sum())
                continue
            if not full:
                not_drawn[files[place].source] += int((usable[place] & ~mask).sum())
    return Selection(passes, duplicates, conflicts, beyond, not_drawn)


def _groups(settings: PrepareSettings) -> list[list[int]]:
    """Sources that are mixed as one: those of a data set for balanced and temperature, each for itself otherwise."""
    names = [source.dataset for source in settings.sources]
    if settings.mixture.by in ("balanced", "temperature"):
        return [[place for place, other in enumerate(names) if other == name] for name in dict.fromkeys(names)]
    return [[place] for place in range(len(names))]


def _targets(settings: PrepareSettings, files: list[FileSurvey], usable: list[Mask]) -> list[int]:
    """Examples in an epoch of each group."""
    mixture = settings.mixture
    available = [
        sum(int(mask.sum()) for file, mask in zip(files, usable, strict=True) if file.source in group)
        for group in _groups(settings)
    ]
    if mixture.by == "natural":
        return [rows * source.repeat for rows, source in zip(available, settings.sources, strict=True)]
    if mixture.by == "balanced":
        return [min(available)] * len(available)
    if mixture.by == "temperature":
        weights = [rows ** (1 / mixture.temperature) for rows in available]
    else:
        weights = [source.probability or 0.0 for source in settings.sources]
    return apportion(mixture.examples or sum(available), weights)


def apportion(total: int, weights: list[float]) -> list[int]:
    """`total` in whole parts in proportion to the weights, by largest remainder; the parts add up to it.

    Example:
        >>> apportion(10, [2, 1, 1])
        [5, 3, 2]
    """
    if total and not sum(weights):
        raise ValueError("nothing to share among weights that are all zero")
    exact = [total * weight / sum(weights) for weight in weights] if total else [0.0] * len(weights)
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda place: (parts[place] - exact[place], place))
    for place in by_remainder[: total - sum(parts)]:
        parts[place] += 1
    return parts


def _drop_duplicates(
    settings: PrepareSettings, files: list[FileSurvey], usable: list[Mask], mine: list[int]
) -> tuple[int, int]:
    if not mine or (settings.deduplicate == "none" and settings.conflicting_labels == "keep"):
        return 0, 0
    places = [np.flatnonzero(usable[place]) for place in mine]
    keys = np.concatenate([files[place].keys[rows] for place, rows in zip(mine, places, strict=True)])
    labels = np.concatenate([files[place].label_keys[rows] for place, rows in zip(mine, places, strict=True)])
    conflict, duplicate = np.zeros(len(keys), bool), np.zeros(len(keys), bool)
    if settings.conflicting_labels == "drop":
        conflict = find_duplicates(keys, labels).conflict
    if settings.deduplicate != "none":
        duplicate = find_duplicates(keys ^ (labels * _ODD)).duplicate & ~conflict
    start = 0
    for place, rows in zip(mine, places, strict=True):
        dropped = (conflict | duplicate)[start : start + len(rows)]
        usable[place] = usable[place].copy()
        usable[place][rows[dropped]] = False
        start += len(rows)
    return int(duplicate.sum()), int(conflict.sum())


def _draw(masks: list[Mask], target: int | None, seed: list[int]) -> tuple[list[Mask], int]:
    """Of the marked examples `target` at random (all, when None or fewer), and how many were left out."""
    available = sum(int(mask.sum()) for mask in masks)
    if target is None or target >= available:
        return masks, 0
    marked = np.flatnonzero(np.concatenate(masks))
    taken = np.zeros(sum(len(mask) for mask in masks), bool)
    taken[np.random.default_rng(seed).permutation(marked)[:target]] = True
    bounds = np.cumsum([len(mask) for mask in masks])[:-1]
    return np.split(taken, bounds), available - target


def _seed(settings: PrepareSettings, place: int, purpose: int) -> list[int]:
    return [settings.seed & 0xFFFFFFFF, place, purpose]
