"""Plain lines: parallel files keep step whatever stands in them."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.config import DataError
from polysome.data.readers import lines as lines_module
from polysome.data.readers.lines import read, whole_lines
from polysome.data.readers.records import Records
from polysome.data.readers.stream import open_stream
from polysome.specs.formats import LinesFormat


def stretches_of(path: Path, content: bytes, block_bytes: int = 1 << 20) -> list[Records]:
    path.write_bytes(content)
    with open_stream(str(path)) as stream:
        return list(read(stream, LinesFormat(), block_bytes=block_bytes))


def lines_of(stretches: list[Records]) -> list[str]:
    return [line for stretch in stretches for line in stretch.columns["line"].to_pylist()]


@given(
    lines=st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), min_size=1),
    line_end=st.sampled_from(["\n", "\r\n"]),
    final=st.booleans(),
    mark=st.booleans(),
    block_bytes=st.integers(1, 40),
)
def test_every_line_is_a_record_empty_ones_included(lines, line_end, final, mark, block_bytes, tmp_path_factory):
    if not final and not lines[-1]:
        lines = [*lines, "AC"]
    if lines[0].startswith("\ufeff"):
        lines = ["A", *lines]
    content = ("\ufeff" if mark else "") + line_end.join(lines) + (line_end if final else "")
    stretches = stretches_of(tmp_path_factory.getbasetemp() / "lines.txt", content.encode(), block_bytes)

    assert lines_of(stretches) == lines
    assert [number for stretch in stretches for number in stretch.numbers] == list(range(len(lines)))


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_an_undecodable_line_is_damaged_and_keeps_its_place(tmp_path, block_bytes):
    stretches = stretches_of(tmp_path / "x", b"AC\r\n\n\xff\nGT\n", block_bytes)

    assert lines_of(stretches) == ["AC", "", "GT"]
    assert [number for stretch in stretches for number in stretch.numbers] == [0, 1, 3]
    assert [row for stretch in stretches for row in stretch.damaged.to_pylist()] == [
        {"record": 2, "offset": 5, "reason": "bytes that are not UTF-8"}
    ]


@given(
    content=st.binary(min_size=1).filter(lambda b: not b.startswith((b"\xef", b"<", b"\x1f"))), size=st.integers(1, 9)
)
def test_blocks_are_whole_lines_and_lose_nothing(content, size):
    class Source:
        url = "memory"

        def __init__(self) -> None:
            self.at = 0

        def read(self, size: int, /) -> bytes:
            self.at += size
            return content[self.at - size : self.at]

    for carriage_returns, ends in ((False, (b"\n",)), (True, (b"\n", b"\r"))):
        blocks = list(whole_lines(Source(), size, carriage_returns=carriage_returns))

        assert b"".join(block for _, block in blocks) == content
        assert [offset for offset, _ in blocks] == [
            sum(len(block) for _, block in blocks[:index]) for index in range(len(blocks))
        ]
        for (_, block), (_, following) in itertools.pairwise(blocks):
            assert block.endswith(ends)
            assert not (carriage_returns and block.endswith(b"\r") and following.startswith(b"\n"))


def test_a_file_without_line_ends_is_not_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "LONGEST_LINE", 1000)
    with pytest.raises(DataError, match="a line of more than 1000 bytes") as caught:
        stretches_of(tmp_path / "x", b"A\n" + b"C" * 2000, 100)
    assert caught.value.where.endswith(", byte 2")
