"""Profiles: rows like the evaluated ones are usual, low complexity and other sources are not."""

import json
import math
import random

import pyarrow as pa

from polysome.evaluation.profile import USUAL, Profile, profiles
from polysome.specs import dataset


def drawn(weights: dict[str, float], count: int, length: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(list(weights), list(weights.values()), k=length)) for _ in range(count)]


def profile_of(name: str, rows: list[list[str]]) -> tuple[Profile, ...]:
    return profiles(dataset(name), pa.table({"sequences": rows}))


RICH = {"A": 2.0, "C": 5.0, "G": 5.0, "T": 2.0}


def test_other_rows_of_the_same_source_are_usual_and_those_of_another_are_not() -> None:
    (found,) = profile_of("core_promoter", [[row] for row in drawn(RICH, 2000, 70, 1)])
    surprises = [found.surprise(row) for row in drawn(RICH, 2000, 70, 2)]
    usual = sum(found.low <= surprise <= found.high for surprise in surprises) / 2000
    assert USUAL - 0.01 <= usual <= USUAL + 0.009
    assert found.surprise("CG" * 35) < found.low
    assert found.surprise("AT" * 35) > found.high
    assert (found.rows, found.shortest, found.longest) == (2000, 70, 70)


def test_each_molecule_has_its_own_and_ambiguity_codes_are_left_out() -> None:
    rows = [["ACGU" * 5 + "N", "MKV" * 9], ["GGCC" * 8, "MKVLAAR"]]
    rna, protein = profile_of("planted_binding", rows)
    assert (rna.role, rna.shortest, rna.longest, len(rna.bits)) == ("rna", 21, 32, 64)
    assert (protein.role, protein.shortest, protein.longest, len(protein.bits)) == ("protein", 7, 27, 20)
    assert (rna.example, protein.example) == tuple(rows[0])
    assert rna.surprise("ACGUN") == rna.surprise("ACGU")
    assert math.isnan(rna.surprise("NNNN"))
    assert Profile.from_json(json.loads(json.dumps(rna.to_json(), allow_nan=False))) == rna
