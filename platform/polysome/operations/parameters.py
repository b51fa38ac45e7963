"""Parameters of a recipe: the few values that people without access to the cluster may set, each with its bounds."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, create_model, model_validator

from polysome.config import Config, validate

_TYPES: dict[str, type] = {"integer": int, "number": float, "boolean": bool, "string": str}
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class Parameter(Config):
    """One value of a recipe that may be set within bounds."""

    key: Annotated[str, Field(min_length=1)]
    """Dotted key of the recipe that it sets, e.g. `optimizer.learning_rate`."""
    type: Literal["integer", "number", "boolean", "string"]
    description: Annotated[str, Field(min_length=1)]
    minimum: float | None = None
    maximum: float | None = None
    choices: Annotated[list[str], Field(min_length=1)] | None = None
    """Of a string: these alone."""
    pattern: str | None = None
    """Of a string: a regular expression that it matches as a whole."""
    required: bool = False
    """It must be given; else the recipe's own value stays."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        """A free text could be any path or address, and a number without bounds any amount of work."""
        numeric, text = self.type in ("integer", "number"), self.type == "string"
        if numeric != (self.minimum is not None and self.maximum is not None):
            raise ValueError("a number needs minimum and maximum, and nothing else may have them")
        if text != ((self.choices is None) != (self.pattern is None)):
            raise ValueError("a string needs choices or a pattern, and nothing else may have them")
        return self

    def field(self, default: Any) -> tuple[Any, Any]:
        """As pydantic's `create_model` takes it; a parameter that is not given is not set."""
        kind: Any = Literal[tuple(self.choices)] if self.choices else _TYPES[self.type]
        bounds: dict[str, Any] = {}
        if self.minimum is not None and self.maximum is not None:
            number = int if self.type == "integer" else float
            bounds = {"ge": number(self.minimum), "le": number(self.maximum)}
        if self.type == "number":
            bounds["allow_inf_nan"] = False
        if self.pattern is not None:
            bounds["pattern"] = f"^(?:{self.pattern})$"
        if not self.choices:
            kind = Annotated[kind, Field(strict=True, **bounds)]
        return kind, Field(default=... if self.required else default, description=self.description)


class Offer(Config):
    """What a recipe says to those who submit it through a gateway."""

    description: str = ""
    parameters: dict[Name, Parameter] = {}

    def schema_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """JSON Schema of the parameters; `values` are those that the recipe sets, by dotted key."""
        schema = self._model(values).model_json_schema()
        for field in schema["properties"].values():
            if field.get("default", ...) is None:
                # The recipe says nothing either: what holds then is the program's own default.
                del field["default"]
        return {name: value for name, value in schema.items() if name != "description"}

    def overrides(self, given: Mapping[str, Any], *, where: str) -> list[str]:
        """`dotted.key=value` for the parameters that are given.

        Raises:
            ConfigurationError: one is unknown, missing, or out of bounds.
        """
        values = validate(self._model({}), dict(given), where=where).model_dump(exclude_unset=True)
        return [f"{self.parameters[name].key}={json.dumps(v, ensure_ascii=False)}" for name, v in values.items()]

    def _model(self, values: Mapping[str, Any]) -> type[Config]:
        fields: Any = {name: item.field(values.get(item.key)) for name, item in self.parameters.items()}
        return create_model("Parameters", __base__=Config, **fields)
