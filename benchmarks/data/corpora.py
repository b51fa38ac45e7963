"""Generated corpora for the benchmarks: proteins as FASTA.gz, the data set spec over them, and two tokenizers."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from isal import igzip

SEED = 42
MEAN, MEDIAN = 358, 289
"""Residues of a protein: log-normal, as in UniProtKB/Swiss-Prot."""
SHORTEST, LONGEST = 20, 5000
VOCABULARY = 4096
TRAINED_ON = 8_000
"""Proteins that the BPE tokenizer is trained on."""

_LINE = 60
_PIECE_RECORDS = 20_000
_COMPRESSION = 2
_HEADER = b">UniRef50_A000000000 Uncharacterized protein n=1 Tax=Escherichia coli TaxID=562\n"
_DIGITS = slice(11, 20)
# Percent of residues in UniProtKB/Swiss-Prot, as its release statistics give them.
_SHARES = {
    "A": 8.25, "R": 5.53, "N": 4.06, "D": 5.46, "C": 1.38, "Q": 3.93, "E": 6.72, "G": 7.07, "H": 2.27, "I": 5.91,
    "L": 9.64, "K": 5.79, "M": 2.41, "F": 3.86, "P": 4.74, "S": 6.65, "T": 5.36, "W": 1.10, "Y": 2.92, "V": 6.85,
}  # fmt: skip
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
_TAGS = ("<dna>", "</dna>", "<rna>", "</rna>", "<protein>", "</protein>")
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def write_corpus(folder: Path, proteins: int, *, files: int, mean: float = MEAN, median: float = MEDIAN) -> int:
    """Write `proteins` over `files` files `part-NN.fasta.gz` in `folder`; returns their residues.

    Residues are drawn independently. The same arguments give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    residues = 0
    for number in range(files):
        count = proteins * (number + 1) // files - proteins * number // files
        with igzip.open(folder / f"part-{number:02d}.fasta.gz", "wb", compresslevel=_COMPRESSION) as file:
            for lengths, text in _pieces(number, count, mean, median):
                file.write(text)
                residues += int(lengths.sum())
    return residues


def write_spec(folder: Path, corpus: Path, *, name: str = "generated_proteins") -> str:
    """Write the spec of the corpus, for `POLYSOME_DATASETS`, into `folder`; returns the data set's name."""
    spec = {
        "name": name,
        "version": 1,
        "title": "Generated proteins",
        "homepage": "https://www.uniprot.org",
        "licence": "CC0-1.0",
        "citation": "None: drawn at random.",
        "format": "fasta",
        "molecules": [{"type": "protein", "minimum_length": 10, "maximum_length": 1_000_000}],
        "splits": {"train": [{"uri": str(path)} for path in sorted(corpus.glob("*.fasta.gz"))]},
    }
    folder.mkdir(parents=True, exist_ok=True)
    # JSON is YAML.
    (folder / f"{name}.yaml").write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
    return name


def write_bpe_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE tokenizer of VOCABULARY tokens on proteins of the same kind and write its folder."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(_TAGS),
        special_tokens=["<|pad|>", "<|bos|>", "<|end|>", *_ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sequences(TRAINED_ON), trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in _TAGS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<|pad|>",
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "chat_template": _TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_per_base_tokenizer(folder: Path) -> None:
    """Write the folder of Polysome's own vocabulary with one token per residue."""
    from polysome.models.tokenizer import build_per_base_tokenizer

    build_per_base_tokenizer(folder, ["Is this protein stable? Yes. No."], kmer=1)


def _sequences(count: int) -> Iterator[str]:
    """Proteins that are in no file."""
    for _, text in _pieces(-1, count, MEAN, MEDIAN):
        for record in text[1:].split(b"\n>"):
            yield record.partition(b"\n")[2].replace(b"\n", b"").decode()


def _pieces(file: int, count: int, mean: float, median: float) -> Iterator[tuple[npt.NDArray[np.int64], bytes]]:
    """Lengths of consecutive proteins of a file and their FASTA text."""
    letters = np.frombuffer("".join(_SHARES).encode(), np.uint8)
    shares = np.array(list(_SHARES.values()))
    # A residue is one of 65,536 places, so that drawing is one look-up.
    ends = np.round(np.cumsum(shares / shares.sum()) * 65_536).astype(np.int64)
    table = np.repeat(letters, np.diff(ends, prepend=0))
    for first in range(0, count, _PIECE_RECORDS):
        draw = np.random.default_rng([SEED, file + 1, first])
        records = min(_PIECE_RECORDS, count - first)
        sigma = math.sqrt(2 * math.log(mean / median))
        lengths = np.clip(draw.lognormal(math.log(median), sigma, records), SHORTEST, LONGEST).astype(np.int64)
        yield lengths, _fasta(lengths, first, table, draw)


def _fasta(
    lengths: npt.NDArray[np.int64], first: int, table: npt.NDArray[np.uint8], draw: np.random.Generator
) -> bytes:
    """FASTA text: residues everywhere, then headers and line ends laid over them."""
    header = np.frombuffer(_HEADER, np.uint8)
    bodies = lengths + -(-lengths // _LINE)
    ends = np.cumsum(len(header) + bodies)
    starts = ends - bodies
    text = table[draw.integers(0, 65_536, ends[-1], np.uint16)]
    within = np.arange(ends[-1]) - np.repeat(starts, len(header) + bodies)
    text[(within >= 0) & (within % (_LINE + 1) == _LINE)] = ord("\n")
    text[ends - 1] = ord("\n")
    titles = np.tile(header, (len(lengths), 1))
    digits = _DIGITS.stop - _DIGITS.start
    numbers = np.arange(first, first + len(lengths))[:, None] // 10 ** np.arange(digits)[::-1] % 10
    titles[:, _DIGITS] = numbers + ord("0")
    text[(starts - len(header))[:, None] + np.arange(len(header))] = titles
    return text.tobytes()
