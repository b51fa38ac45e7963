"""YAML plus dotted overrides in, one validated frozen model out."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from polysome.config.errors import ConfigurationError


class Config(BaseModel):
    """Base of all configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


ConfigT = TypeVar("ConfigT", bound=Config)

_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, and leaves numbers with underscores as text, as YAML 1.2 does:
    `2_1_1` is not 211."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBER_TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    _NUMBER_TAGS[0], re.compile(r"^[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_StrictLoader.add_implicit_resolver(
    _NUMBER_TAGS[1],
    re.compile(
        r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigurationError: the file is missing, is not YAML, repeats a key, or is not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}", where=str(path), fix="check the path; recipes are in jobs/recipes/"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"not UTF-8 text: {error.reason}", where=str(path), fix="save it as UTF-8") from error
    try:
        content = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigurationError(
            f"not valid YAML: {problem}", where=where, fix="mend the syntax of that line"
        ) from error
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"expected a mapping of keys to values, found {type(content).__name__}", where=str(path), fix="see docs/"
        )
    return content


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `content` with each `dotted.key=value` set; values are read as YAML, list items by index.

    Raises:
        ConfigurationError: an override has no `=`, or its path runs through a scalar or past a list's end.
    """
    result = _copy(content)
    for override in overrides:
        dotted, separator, text = override.partition("=")
        if not separator or not dotted:
            raise ConfigurationError(
                f"override {override!r} is not key=value", where="command line", fix="write dotted.key=value"
            )
        try:
            value = yaml.load(text, Loader=_StrictLoader)
        except yaml.YAMLError as error:
            raise ConfigurationError(
                f"the value of override {override!r} is not YAML", where="command line", fix="quote the value"
            ) from error
        *parents, last = dotted.split(".")
        node: Any = result
        try:
            for key in parents:
                node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
            node[int(last) if isinstance(node, list) else last] = value
        except (TypeError, IndexError, ValueError, AttributeError) as error:
            raise ConfigurationError(
                f"override {dotted!r} does not lead to a field",
                where="command line",
                fix="check the path in the recipe",
            ) from error
    return result


def _copy(node: Any) -> Any:
    """A copy in which no two places share a node (YAML aliases do), so that an override changes one place only."""
    if isinstance(node, dict):
        return {key: _copy(value) for key, value in node.items()}
    return [_copy(item) for item in node] if isinstance(node, list) else node


def validate(model: type[ConfigT], content: dict[str, Any], *, where: str) -> ConfigT:
    """Build `model` from `content`, turning pydantic's findings into one ConfigurationError that lists them all."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        # One mistake can show at several places of a union or through a spread default: told once.
        problems = list(dict.fromkeys(_describe(model, item) for item in error.errors(include_url=False)))
        raise ConfigurationError(
            "; ".join(problems), where=where, fix="mend the named fields; `polysome config-schema` prints all of them"
        ) from error


def load(model: type[ConfigT], path: str | Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file, apply overrides, validate it whole."""
    return validate(model, apply_overrides(read_yaml(path), overrides), where=str(path))


def _describe(model: type[BaseModel], item: Any) -> str:
    location = ".".join(str(part) for part in item["loc"]) or "the file"
    if item["type"] == "extra_forbidden":
        names = _field_names(model, item["loc"][:-1])
        near = difflib.get_close_matches(str(item["loc"][-1]), names, n=1)
        hint = f", did you mean {near[0]!r}?" if near else f" (known: {', '.join(sorted(names))})" if names else ""
        return f"unknown key {location!r}{hint}"
    if item["type"] == "missing":
        return f"{location}: required and missing"
    message = item["msg"].removeprefix("Value error, ")
    if isinstance(item["input"], dict | list):
        return f"{location}: {message}"
    value = repr(item["input"])
    shown = value if len(value) <= 80 else value[:77] + "..."
    quote = "; YAML reads yes, no, on, off as true, false: quote it" if isinstance(item["input"], bool) else ""
    return f"{location}: {message} (got {shown}{quote})"


def _field_names(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The known field names at `path`; where a union leaves it open, those of all its models."""
    models: list[type[BaseModel]] = [model]
    for part in path:
        found: list[type[BaseModel]] = []
        for candidate in models:
            if part in candidate.model_fields:
                found += _models_in(candidate.model_fields[str(part)].annotation)
        models = found or models
    return sorted({name for candidate in models for name in candidate.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
