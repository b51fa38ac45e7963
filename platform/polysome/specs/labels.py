"""Label codecs: what a source's label column may hold, and how a label is written in an answer (XP-2)."""

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from polysome.config import Config


def _written(value: object) -> object:
    """A whole number as it would be written in the source; anything else as it is."""
    return str(value) if type(value) is int else value


Written = Annotated[str, BeforeValidator(_written)]


class BinaryLabel(Config):
    """Yes or no. Decodes to 1 or 0."""

    kind: Literal["binary"]
    positive: Written = "1"
    negative: Written = "0"

    def decode(self, text: str) -> float:
        """The label column's text as 1.0 or 0.0; ValueError when it is neither."""
        if text == self.positive:
            return 1.0
        if text == self.negative:
            return 0.0
        raise ValueError(f"label {text!r} is neither {self.positive!r} nor {self.negative!r}")

    def pool(self, value: float) -> str:
        """Which answer-template pool `value` is told from."""
        return "positive" if value else "negative"

    def encode(self, value: float) -> str:
        """The label as it stands in an answer."""
        return "yes" if value else "no"


class MulticlassLabel(Config):
    """One of a closed list of names. Decodes to the name's index."""

    kind: Literal["multiclass"]
    classes: Annotated[list[str], Field(min_length=2)]

    @model_validator(mode="after")
    def _distinct(self) -> "MulticlassLabel":
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("class names must differ")
        return self

    def decode(self, text: str) -> float:
        """Index of the class name as a float; ValueError when it is no class of this task."""
        if text not in self.classes:
            raise ValueError(f"label {text!r} is none of {', '.join(self.classes)}")
        return float(self.classes.index(text))

    def pool(self, value: float) -> str:
        """Which answer-template pool `value` is told from."""
        return "any"

    def encode(self, value: float) -> str:
        """The class name."""
        return self.classes[int(value)]


class RegressionLabel(Config):
    """One number, written with a fixed count of decimals."""

    kind: Literal["regression"]
    decimals: Annotated[int, Field(ge=0, le=6)] = 2
    minimum: float | None = None
    maximum: float | None = None

    def decode(self, text: str) -> float:
        """The number; ValueError when it is none, not finite, or outside the declared range."""
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"label {text!r} is not finite")
        if (self.minimum is not None and value < self.minimum) or (self.maximum is not None and value > self.maximum):
            raise ValueError(f"label {text!r} is outside [{self.minimum}, {self.maximum}]")
        return value

    def pool(self, value: float) -> str:
        """Which answer-template pool `value` is told from."""
        return "any"

    def encode(self, value: float) -> str:
        """The number with `decimals` decimals."""
        return f"{value:.{self.decimals}f}"


Label = Annotated[BinaryLabel | MulticlassLabel | RegressionLabel, Field(discriminator="kind")]
