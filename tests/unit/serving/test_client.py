"""Records from a command line."""

import gzip
import io

import pytest

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.serving.client import ask_server, read_records


def test_sequences_roles_and_fasta_may_be_mixed(tmp_path):
    path = tmp_path / "in.fa"
    path.write_text(">one first\nAC\nGT\n>two\nGGG\n")
    assert read_records(["ACGT", "rna=ACGU,protein=MKV", str(path)]) == [
        ("1", "ACGT"),
        ("2", {"rna": "ACGU", "protein": "MKV"}),
        ("one", "ACGT"),
        ("two", "GGG"),
    ]


def test_a_sequence_longer_than_a_file_name_may_be_is_a_sequence():
    assert read_records(["ACGT" * 2000]) == [("1", "ACGT" * 2000)]


def test_fasta_may_be_compressed_and_a_broken_file_is_told(tmp_path):
    path = tmp_path / "in.fa.gz"
    path.write_bytes(gzip.compress(b">one\nACGT\n"))
    assert read_records([str(path)]) == [("one", "ACGT")]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="cut short"):
        read_records([str(path)])
    plain = tmp_path / "in.fa"
    plain.write_bytes(gzip.compress(b">one\nACGT\n"))
    assert read_records([str(plain)]) == [("one", "ACGT")]
    with pytest.raises(DataError, match="no such file"):
        read_records(["reads.fa.gz"])


def test_fasta_comes_from_standard_input_too(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(">x\nACGT\n"))
    assert read_records(["-"]) == [("x", "ACGT")]


def test_what_looks_like_a_path_is_not_taken_for_a_sequence():
    with pytest.raises(DataError, match="no such file"):
        read_records(["reads.fasta"])


def test_text_that_is_not_fasta_and_nothing_at_all_are_refused(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("ACGT\n")
    with pytest.raises(DataError, match="FASTA"):
        read_records([str(path)])
    with pytest.raises(ConfigurationError, match="no sequence"):
        read_records([])


def test_a_server_that_is_not_there_is_one_clear_error():
    with pytest.raises(ResourceError, match="nothing answers"):
        ask_server("http://127.0.0.1:9", "planted_promoter", ["ACGT"])
