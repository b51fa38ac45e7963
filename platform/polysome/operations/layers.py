"""The layers of a recipe: the files it extends, the recipe itself, its preset, overrides; merged, later over earlier.

Maps merge key by key; lists and scalars replace, and `key: null` sets null. Every value remembers its layer.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from polysome.config import ConfigurationError, apply_overrides, read_yaml

OVERRIDE = "override"
OFFER = ("description", "parameters")


@dataclass(frozen=True)
class Layered:
    """A recipe after merging, before validation.

    Attributes:
        content: without the keys `extends`, `preset`, `presets`, `description` and `parameters`, and without `like` in
            stages.
        origins: of every value that some layer sets, by dotted key (list items by index): the file, relative to the
            recipe's folder, `preset NAME`, or `override`.
        preset: the chosen one.
        files: those merged, the recipe last.
        offer: what the keys `description` and `parameters` say to those who submit it through a gateway.
    """

    content: dict[str, Any]
    origins: dict[str, str]
    preset: str | None
    files: tuple[Path, ...]
    offer: dict[str, Any]


@dataclass(frozen=True)
class _Layer:
    content: dict[str, Any]
    origins: dict[str, str]

    @classmethod
    def of(cls, content: dict[str, Any], name: str) -> Self:
        return cls(content, dict.fromkeys(_leaves(content), name))

    def over(self, below: "_Layer") -> "_Layer":
        content = _merged(below.content, self.content)
        origins = below.origins | self.origins
        return _Layer(content, {leaf: origins[leaf] for leaf in _leaves(content)})

    def overridden(self, overrides: Sequence[str]) -> "_Layer":
        content = apply_overrides(self.content, overrides)
        named = [override.partition("=")[0] for override in overrides]
        origins = {leaf: self.origins.get(leaf, OVERRIDE) for leaf in _leaves(content)}
        for leaf in origins:
            if any(leaf == key or leaf.startswith(f"{key}.") for key in named):
                origins[leaf] = OVERRIDE
        return _Layer(content, origins)

    def at(self, key: str) -> "_Layer":
        """The layer of the map at a dotted key."""
        content: Any = self.content
        for part in key.split("."):
            content = content[part]
        inside = {
            leaf.removeprefix(f"{key}."): name for leaf, name in self.origins.items() if leaf.startswith(f"{key}.")
        }
        return _Layer(content, inside)


def read_layers(path: str | Path, overrides: Sequence[str] = ()) -> Layered:
    """Read a recipe with all that it builds on.

    A file is merged once, also where several extend it, and before all that extend it. The preset is that of the
    override `preset=NAME`, else the key `preset`; the presets of all files are merged like everything else. A stage
    `{like: OTHER, ...}` starts as a copy of the stage OTHER of the same recipe, after presets and overrides.

    Raises:
        ConfigurationError: a file cannot be read or extends itself, a preset or stage is not there, or one of the keys
            has a wrong shape.
    """
    files = _ancestry(Path(path), ())
    chosen: Any = None
    layer = presets = _Layer({}, {})
    for file in files:
        content = read_yaml(file)
        content.pop("extends", None)
        chosen = content.pop("preset", chosen)
        presets = _Layer.of(_presets(content.pop("presets", {}), file), "").over(presets)
        layer = _Layer.of(content, os.path.relpath(file, Path(path).parent)).over(layer)
    where = str(path)
    asked = [override for override in overrides if override.partition("=")[0] == "preset"]
    if asked:
        chosen, where = apply_overrides({}, asked)["preset"], "command line"
    if chosen is not None:
        layer = _Layer.of(_preset(presets.content, chosen, where), f"preset {chosen}").over(layer)
    layer = _with_copies(layer, [override for override in overrides if override not in asked], str(path))
    offer = {key: layer.content.pop(key) for key in OFFER if key in layer.content}
    origins = {leaf: name for leaf, name in layer.origins.items() if leaf.partition(".")[0] not in offer}
    return Layered(layer.content, origins, chosen, files, offer)


def _ancestry(path: Path, below: tuple[Path, ...]) -> tuple[Path, ...]:
    """`path` after all files that it extends, each once."""
    if path in below:
        way = " extends ".join(str(file) for file in (*below[below.index(path) :], path))
        raise ConfigurationError(
            f"recipes extend each other in a circle: {way}", where=str(path), fix="remove one link"
        )
    extended = read_yaml(path).get("extends", [])
    names = [extended] if isinstance(extended, str) else extended
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(
            f"extends: a file or a list of files, found {extended!r}", where=str(path), fix="write extends: other.yaml"
        )
    files: dict[Path, None] = {}
    for name in names:
        file = Path(os.path.normpath(path.parent / name))
        if not file.is_file():
            raise ConfigurationError(
                f"extends: {file} is not there",
                where=str(path),
                fix=f"write the path of {file.name} as seen from the folder of {path.name}",
            )
        files |= dict.fromkeys(_ancestry(file, (*below, path)))
    return (*files, path)


def _presets(presets: Any, file: Path) -> dict[str, Any]:
    if not isinstance(presets, dict) or not all(isinstance(part, dict) for part in presets.values()):
        raise ConfigurationError(
            "presets: a map from names to parts of a recipe", where=str(file), fix="write presets: {name: {key: value}}"
        )
    return presets


def _preset(presets: Mapping[str, Any], name: Any, where: str) -> dict[str, Any]:
    if name not in presets:
        near = difflib.get_close_matches(str(name), list(presets), n=1)
        known = f"choose one of {', '.join(presets)}" if presets else "remove it; this recipe has no presets"
        raise ConfigurationError(
            f"preset: {name!r} is none of this recipe's",
            where=where,
            fix=f"did you mean {near[0]!r}? {known}" if near else known,
        )
    return dict(presets[name])


def _with_copies(layer: _Layer, overrides: Sequence[str], path: str) -> _Layer:
    """Apply overrides and fill up the stages that are `like` another; overrides of such a stage come last, so that they
    also reach into what it is filled up with."""
    inside = tuple(f"stages.{name}." for name in _copies(layer))
    layer = layer.overridden([override for override in overrides if not override.startswith(inside)])
    copies = _copies(layer)
    for name in copies:
        own = layer.at(f"stages.{name}")
        other = own.content.pop("like")
        originals = {key: stage for key, stage in layer.content["stages"].items() if key not in copies}
        if not isinstance(other, str) or not isinstance(originals.get(other), dict):
            raise ConfigurationError(
                f"stages.{name}.like: {other!r} is no stage that can be copied",
                where=path,
                fix=f"name one of {', '.join(originals)}",
            )
        whole = own.over(layer.at(f"stages.{other}"))
        layer.content["stages"][name] = whole.content
        layer.origins.update({f"stages.{name}.{leaf}": origin for leaf, origin in whole.origins.items()})
    return layer.overridden([override for override in overrides if override.startswith(inside)])


def _copies(layer: _Layer) -> list[str]:
    stages = layer.content.get("stages")
    named = stages.items() if isinstance(stages, dict) else ()
    return [name for name, stage in named if isinstance(stage, dict) and "like" in stage]


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **both}


def _leaves(node: Any, at: str = "") -> Iterator[str]:
    """Dotted keys of all scalars, and of maps and lists that are empty."""
    if isinstance(node, dict | list) and node:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(value, f"{at}.{key}" if at else str(key))
    elif at:
        yield at
