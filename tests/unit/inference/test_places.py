"""Rows that come and go in one cache say what they say alone, whatever their lengths."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import build_model

from polysome.inference import places
from polysome.inference.batch import BatchEngine
from polysome.inference.decoding import Running
from polysome.inference.engine import Sampling
from polysome.inference.places import Places, grouped


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> BatchEngine:
    return BatchEngine(build_model(tmp_path_factory.mktemp("model")))


def turn(engine: BatchEngine, length: int, tokens: int = 12):
    return engine.row("ACGT" * (length // 4), Sampling(tokens))


def alone(engine: BatchEngine, length: int, tokens: int = 12) -> list[int]:
    running, row = Running(engine.decoder), turn(engine, length, tokens)
    running.join([row])
    while running.open:
        running.step()
    return row.answer


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(0, 600))
def test_groups_hold_every_row_once_and_are_filled_up_by_no_more_than_is_allowed(lengths, padding):
    groups = grouped(lengths, padding)
    assert [row for first, after, _ in groups for row in range(first, after)] == list(range(len(lengths)))
    for first, after, longest in groups:
        assert longest == max(lengths[first:after])
        assert longest * (after - first) - sum(lengths[first:after]) <= padding
    assert len(groups) == 1 or padding < max(lengths) * len(lengths)


def test_rows_of_all_lengths_come_and_go_and_say_what_they_say_alone(engine, monkeypatch):
    """They leave at different steps, others take their places, room is made for longer ones, and is read in groups."""
    calls = []
    attention = places.sdpa_attention_forward
    monkeypatch.setattr(
        places, "sdpa_attention_forward", lambda *args, **options: calls.append(1) or attention(*args, **options)
    )
    monkeypatch.setitem(places._POSITIONS_PER_CALL, "cpu", 16)
    asked = [(8, 3), (64, 9), (4, 12), (40, 5), (80, 2), (12, 12), (72, 7)]
    running = Running(engine.decoder)
    rows = [turn(engine, *one) for one in asked]
    coming = list(rows)
    step = most = 0
    while coming or running.open:
        if coming and step % 2 == 0:
            running.join([coming.pop(0)])
        running.step()
        step += 1
        assert isinstance(running._cache, Places)
        assert running._cache.lengths == [len(row.prompt) + len(row.answer) - 1 for row in running.rows]
        room = len(running._cache._layers[0].keys)
        assert len(running.rows) <= room <= max(most, len(running.rows)) * 1.25
        most = max(most, len(running.rows))
    layers = len(running._cache._layers)
    assert len(calls) > layers * step, "all rows were read at once"
    calls.clear()
    assert [row.answer for row in rows] == [alone(engine, *one) for one in asked]


def test_a_row_of_no_numbers_harms_nobody_who_comes_after_it(engine):
    running = Running(engine.decoder)
    first, second = turn(engine, 40, 3), turn(engine, 8, 12)
    running.join([first, second])
    running.step()
    with torch.inference_mode():
        for layer in running._cache._layers:
            layer.keys[0] = torch.nan
            layer.values[0] = torch.nan
    while not first.done:
        running.step()
    late = turn(engine, 4, 9)
    running.join([late])
    while running.open:
        running.step()
    assert second.answer == alone(engine, 8, 12)
    assert late.answer == alone(engine, 4, 9)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("llama", True), ("gpt2", True), ("bloom", True), ("mistral, window 24", False), ("gpt_neo", False)],
)
def test_places_are_for_architectures_that_agree_with_plain_passes(tmp_path: Path, kind: str, expected: bool):
    forward = BatchEngine(build_model(tmp_path, kind)).decoder.forward
    assert forward.has_places == expected


def test_what_disagrees_with_plain_passes_has_no_places(engine, monkeypatch):
    monkeypatch.setattr(places, "_TOLERANCE", -1.0)
    assert "differ by" in str(places.obstacle(engine.decoder.forward))
