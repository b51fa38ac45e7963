"""The recipe of a prepared folder."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from polysome.config import Config
from polysome.specs import Prompt, Split


class Source(Config):
    """One split of one data set within a mixture."""

    dataset: str
    """Name in `datasets_spec/`."""
    split: Split = "train"
    repeat: Annotated[int, Field(ge=1, le=100)] = 1
    """How often each example stands in an epoch (A-91); every repeat draws its templates and tags anew."""
    prompt: Prompt = "concise"
    """System prompt; `reasoning` also trains on the worked-out answer (A-73). Corpora ignore it."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use only the first so many examples of each file, counted after exclusion."""


class Protected(Config):
    """A split whose sequences must not stand in the prepared data."""

    dataset: str
    split: Split = "test"


class PrepareSettings(Config):
    """What to read, how to render it, and how long a row is: a recipe but for its name and tokenizer."""

    kind: Literal["pretrain", "instruct"]
    """`pretrain`: raw sequences, loss on every token. `instruct`: chats, loss on the answers."""
    max_length: Annotated[int, Field(ge=16, le=131_072)]
    """Positions in a row; chats must fit, corpus documents are split."""
    sources: Annotated[list[Source], Field(min_length=1)]
    exclude: list[Protected] = []
    """Examples found in one of these splits are left out and counted (AMB-3). For chats: all sequences are equal. For a
    corpus: the text holds a protected sequence anywhere, in DNA also its reverse complement."""
    tag_fraction: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of chats with a task tag (A-60)."""
    seed: int = 42

    @model_validator(mode="after")
    def _not_from_itself(self) -> "PrepareSettings":
        protected = {(item.dataset, item.split) for item in self.exclude}
        for source in self.sources:
            if (source.dataset, source.split) in protected:
                raise ValueError(f"{source.dataset}/{source.split} is both a source and excluded")
        return self


class PrepareConfig(PrepareSettings):
    """The whole recipe of a prepared folder."""

    name: str
    tokenizer: str
    """Local folder of a Hugging Face tokenizer."""
