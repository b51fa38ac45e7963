"""Checkable reasoning: claims computed from a sequence, written as steps, and read back to be verified (A-84).

A reasoning answer is one sentence per declared step and then the answer. `check` reads the claims of any such text and
recomputes each from the sequence, so a generated rationale can be scored, not merely admired.
"""

import re
from dataclasses import dataclass

from polysome.specs.model import ReasoningStep

_LENGTH = re.compile(r"It has (\d+) (?:bases|residues)\.")
_GC = re.compile(r"Its GC content is (\d+) percent\.")
_CHARGED = re.compile(r"It has (\d+) charged residues\.")
_FOUND = re.compile(r"The ([^.]+?) ([A-Z]+) is found at position (\d+)\.")
_ABSENT = re.compile(r"The ([^.]+?) ([A-Z]+) is not found\.")


@dataclass(frozen=True)
class Claim:
    """One statement of a rationale, and whether the sequences bear it out."""

    text: str
    holds: bool


def explain(steps: list[ReasoningStep], sequences: dict[str, str]) -> str:
    """The declared steps worked out on the sequences (role -> sequence), one sentence each."""
    return " ".join(_sentence(step, sequences[step.role]) for step in steps)


def check(text: str, sequences: dict[str, str]) -> list[Claim]:
    """Every claim in `text`, recomputed; a claim holds when it is true of at least one of the sequences."""
    claims = []
    for pattern, test in _TESTS:
        for match in pattern.finditer(text):
            holds = any(test(match, sequence) for sequence in sequences.values())
            claims.append((match.start(), Claim(match.group(0), holds)))
    return [claim for _, claim in sorted(claims, key=lambda entry: entry[0])]


def gc_percent(sequence: str) -> int:
    """Share of G and C among the bases, in whole percent, rounded half up."""
    return int(100 * sum(base in "GC" for base in sequence) / len(sequence) + 0.5)


def charged_count(sequence: str) -> int:
    """How many residues are D, E, K or R."""
    return sum(residue in "DEKR" for residue in sequence)


def _sentence(step: ReasoningStep, sequence: str) -> str:
    if step.claim == "length":
        return f"It has {len(sequence)} {step.unit}."
    if step.claim == "gc":
        return f"Its GC content is {gc_percent(sequence)} percent."
    if step.claim == "charged":
        return f"It has {charged_count(sequence)} charged residues."
    position = sequence.find(step.pattern)
    if position < 0:
        return f"The {step.name} {step.pattern} is not found."
    return f"The {step.name} {step.pattern} is found at position {position + 1}."


_TESTS = (
    (_LENGTH, lambda match, sequence: len(sequence) == int(match[1])),
    (_GC, lambda match, sequence: gc_percent(sequence) == int(match[1])),
    (_CHARGED, lambda match, sequence: charged_count(sequence) == int(match[1])),
    (_FOUND, lambda match, sequence: sequence[int(match[3]) - 1 :].startswith(match[2])),
    (_ABSENT, lambda match, sequence: match[2] not in sequence),
)
