"""The data of a planned stage: exact from a prepared folder, or declared, or estimated from the specs."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from polysome.data.config import PrepareSettings, Source
from polysome.data.manifest import Manifest
from polysome.specs import Dataset, dataset
from polysome.storage import exists, resolve

PACKING_EFFICIENCY = 0.99
"""Share of positions that hold a token, of rows that are packed closest (benchmarks/data/results/packing.json)."""
CHAT_TOKENS = 60
"""Tokens of a chat around its molecules; the wordings of the tasks need 40 to 80."""
TEXT_CHARACTERS_PER_TOKEN = 1.67
"""Letters of a sequence per token of a vocabulary made for text: 2,000 are at most 1,200 tokens (A-91)."""
SAMPLE = 64
"""Examples per source whose lengths are looked at."""
ROW_BYTES = 4 + 4
"""Per token on disk: in the prepared shards, at most, and in the cache of a machine that reads them (int32)."""


@dataclass(frozen=True)
class Data:
    """What an epoch holds.

    Attributes:
        known: prepared (exact), declared (by options), estimated, or unknown.
        basis: from what, in words.
        rows: packed rows of an epoch; None when unknown.
        tokens: unpadded, of an epoch; None when unknown.
        row_tokens: tokens of a full row, which memory must hold.
        document_length: mean tokens of a document.
        target_share: share of tokens that are trained on.
    """

    known: Literal["prepared", "declared", "estimated", "unknown"]
    basis: str
    rows: int | None
    tokens: int | None
    row_tokens: int
    document_length: int
    target_share: float

    @property
    def tokens_per_row(self) -> float:
        """Unpadded, on average."""
        return self.tokens / self.rows if self.rows and self.tokens else float(self.row_tokens)

    @property
    def prepared_bytes(self) -> int:
        """On disk: the prepared folder, and the cache of one machine."""
        return ROW_BYTES * (self.tokens or 0)


def of_manifest(manifest: Manifest, folder: str) -> Data:
    """The data that stands in a prepared folder."""
    return Data(
        "prepared",
        f"the manifest of {folder}",
        manifest.rows,
        manifest.tokens,
        manifest.max_length,
        max(1, round(manifest.tokens / max(1, manifest.documents))),
        manifest.targets / max(1, manifest.tokens),
    )


def declared(rows: int, tokens_per_row: int | None, settings: PrepareSettings | None) -> Data:
    """The data of `--rows` and `--tokens-per-row`: every row is one document, and trained on throughout."""
    length = tokens_per_row or (settings.max_length if settings else 1024)
    basis = f"--rows {rows}, {length} tokens each, as one document that is trained on throughout"
    return Data("declared", basis, rows, rows * length, length, length, 1.0)


def estimated(settings: PrepareSettings, *, characters_per_token: float) -> Data:
    """What the specs tell of data that is not prepared.

    Examples are those that the specs declare (`rows`, else `paper_rows`), times `repeat`, at most `limit`. Their length
    is that of a sample where the files lie on this machine; else they are taken to fill a row, which is the most.

    Raises:
        DataError: a file that lies here cannot be read.
    """
    chats = settings.kind == "instruct"
    examples, tokens, sampled, full = 0, 0.0, 0, 0
    counts = {number: _examples(source) for number, source in enumerate(settings.sources)}
    unknown = [settings.sources[number].dataset for number, count in counts.items() if count is None]
    for number, source in enumerate(settings.sources):
        count = counts[number]
        if count is None:
            continue
        count = _taken(settings, source, count, [other for other in counts.values() if other is not None])
        characters = _characters(source)
        length = float(settings.max_length)
        if characters is None:
            full += 1
        else:
            sampled += 1
            length = characters / characters_per_token + (CHAT_TOKENS if chats else 1)
        examples += count
        tokens += count * (min(length, settings.max_length) if chats else length)
    document = round(min(tokens / examples, settings.max_length)) if examples else settings.max_length
    if unknown:
        basis = f"the specs do not tell how many examples there are of {', '.join(unknown)}"
        return Data("unknown", basis, None, None, settings.max_length, document, 1.0)
    told = [f"{examples:,} examples as the specs declare them"]
    told += [f"lengths of {sampled} sources from samples of {SAMPLE}"] if sampled else []
    told += [f"those of {full} taken to fill a row, which is the most"] if full else []
    packable = document <= settings.max_length / 2
    efficiency = PACKING_EFFICIENCY if packable else 1.0
    rows = math.ceil(tokens / settings.max_length / efficiency) if packable else examples
    return Data("estimated", "; ".join(told), rows, round(tokens), settings.max_length, max(1, document), 1.0)


def unknown(settings: PrepareSettings | None, why: str) -> Data:
    """Data of which only the length of a row is known, if that."""
    length = settings.max_length if settings else 1024
    return Data("unknown", why, None, None, length, length, 1.0)


def _examples(source: Source) -> int | None:
    """Examples of a source as declared; None when the spec does not tell."""
    spec = dataset(source.dataset)
    counts: list[int] = []
    for file in spec.files(source.split, source.subsets):
        if file.rows is None or spec.window is not None:
            # A windowed record gives as many examples as it is long, and only a limit tells their number.
            told = spec.task.paper_rows.get(source.split) if spec.task else None
            return told if told is not None else source.limit
        lower, upper = file.share or (0.0, 1.0)
        counts.append(round(file.rows * (upper - lower)))
    return sum(counts)


def _taken(settings: PrepareSettings, source: Source, count: int, counts: list[int]) -> int:
    """How many of a source's examples an epoch holds, by the mixture."""
    mixture = settings.mixture
    if mixture.by == "balanced":
        return min(min(counts), source.limit or count)
    if mixture.by == "natural":
        return min(count, source.limit or count) * source.repeat
    total = mixture.examples or sum(counts)
    if mixture.by == "probability":
        return round(total * (source.probability or 0.0))
    return round(total * count ** (1 / mixture.temperature) / sum(one ** (1 / mixture.temperature) for one in counts))


def _characters(source: Source) -> float | None:
    """Mean letters of all molecules of an example, from a sample; None where no file lies on this machine."""
    from polysome.data.examples import read_examples

    spec: Dataset = dataset(source.dataset)
    if not all(_is_here(resolve(file.uri, file.mirror_path)) for file in spec.files(source.split, source.subsets)):
        return None
    sequences = read_examples(spec, source.split, limit=SAMPLE, subsets=source.subsets)["sequences"].to_pylist()
    lengths = [sum(len(sequence) for sequence in example) for example in sequences]
    return sum(lengths) / len(lengths) if lengths else None


def _is_here(uri: str) -> bool:
    """Whether an address can be read without a network."""
    scheme = urlsplit(uri.rpartition("::")[2]).scheme
    return scheme == "planted" or (scheme in ("", "file") and exists(os.path.expanduser(uri.rpartition("::")[2])))
