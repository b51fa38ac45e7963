"""Reasoning steps are true when written, and a false claim is found when read (A-84)."""

from polysome.data.planted import generate
from polysome.data.reasoning import check, explain
from polysome.data.render import reasoning_answer
from polysome.specs import dataset


def test_generated_rationales_hold():
    for name in ("planted_promoter", "planted_ncrna_family", "planted_thermostability", "planted_binding"):
        spec = dataset(name)
        roles = [molecule.role for molecule in spec.molecules]
        for sequences, label in generate(spec.files("stage3_pool")[0].uri, "stage3_pool"):
            text = reasoning_answer(spec, list(sequences), spec.task.label.decode(label))
            claims = check(text, dict(zip(roles, sequences, strict=True)))
            assert len(claims) == len(spec.task.reasoning)
            assert all(claim.holds for claim in claims)


def test_false_claims_are_found():
    text = "It has 9 bases. Its GC content is 50 percent. The TATA box TATAAA is found at position 2."
    assert [claim.holds for claim in check(text, {"sequence": "GCATGCAT"})] == [False, True, False]
    assert [claim.holds for claim in check("The TATA box TATAAA is not found.", {"s": "GTATAAAG"})] == [False]


def test_positions_count_from_one():
    steps = dataset("planted_promoter").task.reasoning
    assert "found at position 2." in explain(steps, {"sequence": "GTATAAAG"})
