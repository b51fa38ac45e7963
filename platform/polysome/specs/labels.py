"""Label codecs: what a source's label column may hold, and how a label is written in an answer (XP-2).

A decoded label is a tuple of numbers: one for a binary, multiclass or regression label, several for a multi_regression,
the sorted indices of a multilabel's names, none for a generation.
"""

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from polysome.config import Config


def _written(value: object) -> object:
    """A whole number as it would be written in the source; anything else as it is."""
    return str(value) if type(value) is int else value


Written = Annotated[str, BeforeValidator(_written)]


Value = tuple[float, ...]


class BinaryLabel(Config):
    """Yes or no. Decodes to 1 or 0."""

    kind: Literal["binary"]
    positive: Written = "1"
    negative: Written = "0"

    def decode(self, text: str) -> Value:
        """The label column's text as (1.0,) or (0.0,); ValueError when it is neither."""
        if text == self.positive:
            return (1.0,)
        if text == self.negative:
            return (0.0,)
        raise ValueError(f"label {text!r} is neither {self.positive!r} nor {self.negative!r}")

    def pool(self, value: Value) -> str:
        """Which answer-template pool `value` is told from."""
        return "positive" if value[0] else "negative"

    def encode(self, value: Value) -> str:
        """The label as it stands in an answer."""
        return "yes" if value[0] else "no"


class MulticlassLabel(Config):
    """One of a closed list of names. Decodes to the name's index."""

    kind: Literal["multiclass"]
    classes: Annotated[list[str], Field(min_length=2)]

    @model_validator(mode="after")
    def _distinct(self) -> "MulticlassLabel":
        _require_distinct(self.classes)
        return self

    def decode(self, text: str) -> Value:
        """Index of the class name; ValueError when it is no class of this task."""
        if text not in self.classes:
            raise ValueError(f"label {text!r} is none of {_listed(self.classes)}")
        return (float(self.classes.index(text)),)

    def pool(self, value: Value) -> str:
        """Which answer-template pool `value` is told from."""
        return "any"

    def encode(self, value: Value) -> str:
        """The class name."""
        return self.classes[int(value[0])]


class MultilabelLabel(Config):
    """A set of names of a closed list. Decodes to their sorted indices; the empty set is written `none`."""

    kind: Literal["multilabel"]
    classes: Annotated[list[str], Field(min_length=2)]
    separator: Annotated[str, Field(min_length=1)] = ","
    """Between the names, in the source and in an answer."""
    none: str | None = None
    """How the source and an answer write the empty set; by default it is refused."""
    prefix: str = ""
    """Put before each name in an answer, and allowed in the source, e.g. `EC`."""

    @model_validator(mode="after")
    def _distinct(self) -> "MultilabelLabel":
        _require_distinct(self.classes)
        return self

    def decode(self, text: str) -> Value:
        """Indices of the names; ValueError for a name that is none of the classes, or an empty set that has no name."""
        if self.none is not None and text == self.none:
            return ()
        names = [name.strip().removeprefix(self.prefix).strip() for name in text.split(self.separator)]
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise ValueError(f"label {unknown[0]!r} in {text!r} is none of {_listed(self.classes)}")
        return tuple(float(index) for index in sorted({self.classes.index(name) for name in names}))

    def pool(self, value: Value) -> str:
        """Which answer-template pool `value` is told from."""
        return "any"

    def encode(self, value: Value) -> str:
        """The names in the order of the classes."""
        if not value:
            return self.none or ""
        return self.separator.join(f"{self.prefix}{self.classes[int(index)]}" for index in value)


class _Number(Config):
    decimals: Annotated[int, Field(ge=0, le=6)] = 2
    minimum: float | None = None
    maximum: float | None = None

    def _read(self, text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"label {text!r} is not finite")
        if (self.minimum is not None and value < self.minimum) or (self.maximum is not None and value > self.maximum):
            raise ValueError(f"label {text!r} is outside [{self.minimum}, {self.maximum}]")
        return value

    def _write(self, value: float) -> str:
        # A negative number that rounds to zero is written without its sign.
        return f"{round(value, self.decimals) + 0.0:.{self.decimals}f}"

    def pool(self, value: Value) -> str:
        """Which answer-template pool `value` is told from."""
        return "any"


class RegressionLabel(_Number):
    """One number, written with a fixed count of decimals."""

    kind: Literal["regression"]

    def decode(self, text: str) -> Value:
        """The number; ValueError when it is none, not finite, or outside the declared range."""
        return (self._read(text),)

    def encode(self, value: Value) -> str:
        """The number with `decimals` decimals."""
        return self._write(value[0])


class MultiRegressionLabel(_Number):
    """Several named numbers, e.g. `ON`, `OFF`, `ON_OFF`; an answer template has a placeholder `{label_<name>}` each."""

    kind: Literal["multi_regression"]
    outputs: Annotated[list[str], Field(min_length=2)]
    """Names in order."""
    separator: Annotated[str, Field(min_length=1)] = ";"
    """Between the numbers in the label column."""

    @model_validator(mode="after")
    def _distinct(self) -> "MultiRegressionLabel":
        _require_distinct(self.outputs)
        return self

    def decode(self, text: str) -> Value:
        """The numbers in order; ValueError when their count or one of them is wrong."""
        parts = text.split(self.separator)
        if len(parts) != len(self.outputs):
            raise ValueError(f"label {text!r} holds {len(parts)} values, {len(self.outputs)} are needed")
        return tuple(self._read(part) for part in parts)

    def encode(self, value: Value) -> str:
        """The numbers, separated by comma and blank."""
        return ", ".join(self._write(number) for number in value)

    def encode_each(self, value: Value) -> dict[str, str]:
        """Placeholder name -> number, e.g. `label_ON` -> `0.53`."""
        return {f"label_{name}": self._write(number) for name, number in zip(self.outputs, value, strict=True)}


class GenerationLabel(Config):
    """Free text, which is the answer itself. Decodes to nothing."""

    kind: Literal["generation"]

    def decode(self, text: str) -> Value:
        """Empty; ValueError when there is no text."""
        if not text.strip():
            raise ValueError("the answer is empty")
        return ()

    def pool(self, value: Value) -> str:
        """Which answer-template pool `value` is told from."""
        return "any"

    def encode(self, value: Value) -> str:
        """Empty: the text stands with the example."""
        return ""


def _require_distinct(names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError("names must differ")


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:20])}, … ({len(names)} in all)"


Label = Annotated[
    BinaryLabel | MulticlassLabel | MultilabelLabel | RegressionLabel | MultiRegressionLabel | GenerationLabel,
    Field(discriminator="kind"),
]
