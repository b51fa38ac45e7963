"""The recipe of a prepared folder."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from polysome.config import Config
from polysome.data.render import TagStyle, TaskTag, Wording
from polysome.specs import Prompt, Split


def _one_number(value: Any) -> Any:
    """`2_1_1` is three weights written as one number, which YAML reads as 211 and would be obeyed in silence."""
    if isinstance(value, str) and "_" in value:
        raise ValueError(f"{value!r} is not one number: give every source its own repeat, e.g. repeat: 2")
    return value


class Source(Config):
    """One split of one data set within a mixture."""

    dataset: str
    """Name in `datasets_spec/`."""
    split: Split = "train"
    subsets: Annotated[list[str], Field(min_length=1)] | None = None
    """Only these subsets; by default all that are not optional."""
    repeat: Annotated[int, BeforeValidator(_one_number), Field(ge=1, le=100)] = 1
    """How often each example stands in an epoch (A-91); every repeat draws its templates and tags anew."""
    probability: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the mixture's examples, for a mixture by probability."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """At most so many of its examples, drawn at random by the seed; counted after exclusion and duplicates."""
    prompt: Prompt = "concise"
    """System prompt; `reasoning` also trains on the worked-out answer (A-73). Corpora ignore it."""
    wording: Wording = "faithful"
    """`conditioned`: questions that also name the subset (AMB-12)."""


class Protected(Config):
    """A split whose sequences must not stand in the prepared data."""

    dataset: str
    split: Split = "test"
    subsets: Annotated[list[str], Field(min_length=1)] | None = None


class Mixture(Config):
    """How many examples of each data set an epoch holds; exact, and told in the manifest."""

    by: Literal["natural", "balanced", "temperature", "probability"] = "natural"
    """`natural`: all, times their `repeat`. `balanced`: every data set down to the smallest (A-142). `temperature`:
    data sets in proportion to rows^(1/temperature). `probability`: sources in proportion to their `probability`."""
    temperature: Annotated[float, Field(ge=1)] = 2.0
    examples: Annotated[int, Field(ge=1)] | None = None
    """Examples in all, for `temperature` and `probability`; by default as many as there are. Where a source has fewer
    than its part, its examples are repeated, as evenly as can be."""


class PrepareSettings(Config):
    """What to read, how to mix and render it, and how long a row is: a recipe but for its name and tokenizer."""

    kind: Literal["pretrain", "instruct"]
    """`pretrain`: raw sequences, loss on every token. `instruct`: chats, loss on the answers."""
    max_length: Annotated[int, Field(ge=16, le=131_072)]
    """Positions in a row. Corpus documents are split; chats are cropped by the rule of their molecules, or refused."""
    sources: Annotated[list[Source], Field(min_length=1)]
    mixture: Mixture = Mixture()
    deduplicate: Literal["none", "exact", "both_strands"] = "none"
    """Keep the first of equal examples of a source, equal label included; `both_strands`: DNA that is the reverse
    complement of another is equal to it."""
    conflicting_labels: Literal["keep", "drop"] = "keep"
    """Examples of a source with equal sequences and unequal labels; `drop` leaves out all of them."""
    exclude: list[Protected] = []
    """Examples found in one of these splits are left out and counted (AMB-3). For chats: all sequences are equal. For a
    corpus: the text holds a protected sequence anywhere, in DNA also its reverse complement."""
    task_tag: TaskTag = TaskTag()
    """Which chats carry a task tag, where and how (A-60..62)."""
    tag_style: TagStyle = "xml"
    """Molecule tags: `xml` closes with `</rna>`, `release` with `<rna>` as the authors' data do (AMB-4)."""
    audit: bool = False
    """Also look for duplicates, contradictions and leaks between splits, and between test splits and corpora, and store
    what was found as `audit.json`; see `polysome datasets audit`."""
    seed: int = 42

    @model_validator(mode="after")
    def _whole(self) -> "PrepareSettings":
        protected = {(item.dataset, item.split) for item in self.exclude}
        for source in self.sources:
            if (source.dataset, source.split) in protected:
                raise ValueError(f"{source.dataset}/{source.split} is both a source and excluded")
        by_probability = self.mixture.by == "probability"
        for source in self.sources:
            if (source.probability is not None) != by_probability:
                raise ValueError(
                    f"{source.dataset}: every source has a probability in a mixture by probability, and none elsewhere"
                )
        total = math.fsum(source.probability or 0 for source in self.sources)
        if by_probability and not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"the probabilities add up to {total:g}, not to 1")
        if self.mixture.by != "natural" and any(source.repeat > 1 for source in self.sources):
            raise ValueError(f"repeat is for a natural mixture; {self.mixture.by} decides how often an example stands")
        if self.mixture.by in ("natural", "balanced") and self.mixture.examples is not None:
            raise ValueError(f"a {self.mixture.by} mixture takes as many examples as there are; use limit")
        return self

    @property
    def selects(self) -> bool:
        """Whether examples must be counted before they are taken."""
        limited = any(source.limit is not None for source in self.sources)
        duplicates = self.deduplicate != "none" or self.conflicting_labels == "drop"
        return limited or duplicates or self.mixture.by != "natural"


class PrepareConfig(PrepareSettings):
    """The whole recipe of a prepared folder."""

    name: str
    tokenizer: str
    """Local folder of a Hugging Face tokenizer."""
