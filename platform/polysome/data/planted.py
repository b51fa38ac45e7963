"""Planted biology: generated sequences whose labels follow a known rule, so that a platform can be seen to learn.

Addressed like a file: `planted://<rule>?rows=3000&seed=7`. The same address and split give the same records in every
process. The rules imitate real signals in miniature:

- `promoter` (DNA, binary): a TATA box stands in the sequence, or a box with one base changed does.
- `ncrna_family` (RNA, 4 classes): a family's signature motif stands in the sequence.
- `thermostability` (protein, number): 30 + 50 x the share of charged residues (D, E, K, R), in degrees Celsius.
- `binding` (RNA + protein, binary): the RNA carries one of two binding sites, the protein one of two domains; they
  bind when domain and site match. Neither molecule alone tells anything, nor does the sum of their k-mers.
- `description` (protein, free text): a sentence names which of the two domains the protein carries, or both.
- `dna`, `rna`, `protein` (unlabelled): the molecules of the rules above, without their labels.
"""

import random
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, urlsplit

from polysome.config import DataError

TATA_BOX = "TATAAA"
FAMILY_MOTIFS = {"tRNA": "GGUUCGA", "5S_rRNA": "CCGAACU", "miRNA": "UGAGGUA", "riboswitch": "AAGGCUC"}
BINDING_SITES = ("UGUAAAU", "GCAUGCC")
BINDING_DOMAINS = ("RRMWYF", "KHGPGG")
DOMAIN_NAMES = ("an RNA recognition motif", "a KH domain")

_BASES = "ACGT"
_AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
_CHARGED = "DEKR"
_UNCHARGED = "".join(sorted(set(_AMINO_ACIDS) - set(_CHARGED)))

Labelled = tuple[tuple[str, ...], str | None]


def generate(address: str, split: str) -> Iterator[Labelled]:
    """The records of a `planted://` address for a split: sequences in molecule order, and the label as text.

    Raises:
        DataError: the address names no rule, or lacks `rows`.
    """
    parts = urlsplit(address)
    query = parse_qs(parts.query)
    rule = _RULES.get(parts.netloc)
    try:
        rows, seed = int(query["rows"][0]), int(query.get("seed", ["0"])[0])
    except (KeyError, ValueError):
        rows, seed = 0, 0
    if rule is None or rows < 1:
        raise DataError(
            f"{address!r} is no planted data",
            where=address,
            fix=f"write planted://<rule>?rows=N&seed=N with a rule of {', '.join(sorted(_RULES))}",
        )
    # A string seed is hashed with SHA-512 by `random`, the same in every process.
    draw = random.Random(f"{parts.netloc}/{split}/{seed}")
    for _ in range(rows):
        yield rule(draw)


def _sequence(draw: random.Random, letters: str, length: int) -> str:
    return "".join(draw.choices(letters, k=length))


def _plant(draw: random.Random, background: str, motif: str) -> str:
    start = draw.randint(0, len(background) - len(motif))
    return background[:start] + motif + background[start + len(motif) :]


def _free_of(draw: random.Random, make: Callable[[], str], motifs: tuple[str, ...]) -> str:
    while any(motif in (sequence := make()) for motif in motifs):
        pass
    return sequence


def promoter(draw: random.Random) -> Labelled:
    """DNA of 30-40 bases; `1` when a TATA box stands in it, else `0` and a box with one base changed stands in it."""
    length = draw.randint(30, 40)
    background = _free_of(draw, lambda: _sequence(draw, _BASES, length), (TATA_BOX,))
    if draw.random() < 0.5:
        return (_plant(draw, background, TATA_BOX),), "1"
    position = draw.randrange(len(TATA_BOX))
    changed = draw.choice([base for base in _BASES if base != TATA_BOX[position]])
    near = TATA_BOX[:position] + changed + TATA_BOX[position + 1 :]
    sequence = _free_of(draw, lambda: _plant(draw, background, near), (TATA_BOX,))
    return (sequence,), "0"


def ncrna_family(draw: random.Random) -> Labelled:
    """RNA of 30-40 bases that carries the motif of exactly one family; the label is its name."""
    length = draw.randint(30, 40)
    motifs = tuple(FAMILY_MOTIFS.values())
    family = draw.choice(list(FAMILY_MOTIFS))
    background = _free_of(draw, lambda: _sequence(draw, "ACGU", length), motifs)
    others = tuple(motif for motif in motifs if motif != FAMILY_MOTIFS[family])
    return (_free_of(draw, lambda: _plant(draw, background, FAMILY_MOTIFS[family]), others),), family


def thermostability(draw: random.Random) -> Labelled:
    """Protein of 30 residues; the label is 30 + 50 x the share of charged ones, with no decimals."""
    share = draw.random()
    residues = [draw.choice(_CHARGED if draw.random() < share else _UNCHARGED) for _ in range(30)]
    charged = sum(residue in _CHARGED for residue in residues)
    return ("".join(residues),), f"{30 + 50 * charged / len(residues):.0f}"


def binding(draw: random.Random) -> Labelled:
    """RNA of 14 bases with one of two sites, protein of 12 residues with one of two domains; `1` when they match."""
    site, domain = draw.randrange(2), draw.randrange(2)
    rna = _free_of(
        draw,
        lambda: _plant(draw, _sequence(draw, "ACGU", 14), BINDING_SITES[site]),
        (BINDING_SITES[1 - site],),
    )
    protein = _free_of(
        draw,
        lambda: _plant(draw, _sequence(draw, _AMINO_ACIDS, 12), BINDING_DOMAINS[domain]),
        (BINDING_DOMAINS[1 - domain],),
    )
    return (rna, protein), "1" if site == domain else "0"


def description(draw: random.Random) -> Labelled:
    """Protein of 30 residues that carries one of two domains, or both; the label is a sentence that names them."""
    halves = [_sequence(draw, _AMINO_ACIDS, 15) for _ in BINDING_DOMAINS]
    for place in draw.choice([(0,), (1,), (0, 1)]):
        halves[place] = _plant(draw, halves[place], BINDING_DOMAINS[place])
    protein = "".join(halves)
    named = [name for domain, name in zip(BINDING_DOMAINS, DOMAIN_NAMES, strict=True) if domain in protein]
    return (protein,), f"The protein carries {' and '.join(named)}."


def _unlabelled(*parts: tuple[Callable[[random.Random], Labelled], int]) -> Callable[[random.Random], Labelled]:
    """A rule that draws one of `parts` and keeps only the molecule at the part's index."""

    def rule(draw: random.Random) -> Labelled:
        part, molecule = draw.choice(parts)
        return (part(draw)[0][molecule],), None

    return rule


_RULES: dict[str, Callable[[random.Random], Labelled]] = {
    "promoter": promoter,
    "ncrna_family": ncrna_family,
    "thermostability": thermostability,
    "binding": binding,
    "description": description,
    "dna": _unlabelled((promoter, 0)),
    "rna": _unlabelled((ncrna_family, 0), (binding, 0)),
    "protein": _unlabelled((thermostability, 0), (binding, 1)),
}
