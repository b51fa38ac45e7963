"""Streams: what comes out of every compression and container, and what is refused, with file, byte and advice."""

import bz2
import csv
import gzip
import hashlib
import io
import lzma
import tarfile
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from Bio import bgzf

from polysome.config import DataError
from polysome.data.readers.stream import open_stream

# Letters of little redundancy: small enough for a test, long enough for several blocks of every compression.
CONTENT = b">a\n" + bytes(np.random.default_rng(7).choice(np.frombuffer(b"ACGTN\n", np.uint8), 200_000)) + b"\n"
HALVES = CONTENT[:90_000], CONTENT[90_000:]


def blocked_gzip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    writer = bgzf.BgzfWriter(fileobj=buffer)
    writer.write(content)
    writer.flush()
    buffer.write(bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000"))
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    return buffer.getvalue().to_pybytes()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bgz": blocked_gzip,
    "bz2": bz2.compress,
    "xz": lambda content: lzma.compress(content, preset=0),
    "zst": zstd,
}


def refused(url: str) -> DataError:
    with pytest.raises(DataError) as caught, open_stream(url) as stream:
        stream.hexdigest()
    assert caught.value.where
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("ending", COMPRESSIONS)
@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_every_compression_is_told_by_its_first_bytes(tmp_path, ending, named):
    path = tmp_path / ("a.fa." + ending if named else "download")
    path.write_bytes(COMPRESSIONS[ending](CONTENT))
    with open_stream(str(path)) as stream:
        assert stream.peek(10) == CONTENT[:10]
        assert stream.read(1000) == CONTENT[:1000]
        assert stream.position == stream.tell() == 1000
        assert b"".join(stream.chunks(70_000)) == CONTENT[1000:]
        assert stream.hexdigest() == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_archives_of_several_members_are_read_whole(tmp_path, ending):
    path = tmp_path / "a"
    path.write_bytes(b"".join(COMPRESSIONS[ending](half) for half in HALVES))
    with open_stream(str(path)) as stream:
        assert stream.read() == CONTENT


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_no_truncated_archive_is_taken_for_a_whole_one(tmp_path, ending):
    archive = COMPRESSIONS[ending](CONTENT[:66_000])
    path = tmp_path / "a"
    for length in [*range(7, 40), *range(40, len(archive) - 30, 9001), *range(len(archive) - 30, len(archive))]:
        path.write_bytes(archive[:length])
        error = refused(str(path))
        assert "cut short" in error.what, length
        assert str(path) in error.where


def test_a_bgzf_file_cut_between_two_blocks_is_cut_short(tmp_path):
    """Each block is a whole gzip member, so that only the missing end block tells."""
    archive = blocked_gzip(CONTENT)
    second = archive.index(b"\x1f\x8b\x08\x04", 100)
    (tmp_path / "a.bgz").write_bytes(archive[:second])
    assert "the block that marks its end is missing" in refused(str(tmp_path / "a.bgz")).what


def test_a_second_read_after_damage_does_not_pass_for_the_end(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(CONTENT)[:-20])
    with open_stream(str(tmp_path / "a.gz")) as stream:
        for _ in range(2):
            with pytest.raises(DataError, match="cut short"):
                stream.read()


# The zstd frames that Arrow writes carry no checksum.
@pytest.mark.parametrize("ending", ["gz", "bgz", "bz2", "xz"])
def test_damage_within_an_archive_is_named(tmp_path, ending):
    archive = bytearray(COMPRESSIONS[ending](CONTENT))
    middle = len(archive) // 2
    archive[middle : middle + 8] = bytes(255 - byte for byte in archive[middle : middle + 8])
    (tmp_path / "a").write_bytes(archive)
    assert "damaged" in refused(str(tmp_path / "a")).what


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("garbage", [b"x", b"\0\0 garbage that goes on and on"], ids=["short", "long"])
def test_what_follows_an_archive_is_not_left_out_in_silence(tmp_path, ending, garbage):
    archive = COMPRESSIONS[ending](CONTENT)
    (tmp_path / "a").write_bytes(archive + garbage)
    error = refused(str(tmp_path / "a"))
    assert "follow the end" in error.what
    assert error.where.endswith(f"byte {len(archive) + garbage.count(0)}")
    (tmp_path / "a").write_bytes(archive + bytes(512))
    with open_stream(str(tmp_path / "a")) as stream:
        assert stream.read() == CONTENT


def test_small_outputs_of_a_bomb_are_given_piece_by_piece(tmp_path):
    """16 MiB of one letter compress to 16 kB: memory must follow what is asked for, not what one input expands to."""
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"A" * (16 << 20)))
    with open_stream(str(tmp_path / "a.gz")) as stream:
        assert stream.read(10) == b"A" * 10
        assert len(stream._ahead) <= 1 << 20
        assert len(stream.read()) == (16 << 20) - 10


def test_members_of_archives_and_other_file_systems(tmp_path):
    packed = gzip.compress(CONTENT)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/b.fa.gz", packed)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("in/b.fa")
        entry.size = len(CONTENT)
        archive.addfile(entry, io.BytesIO(CONTENT))
    with fsspec.open("memory://readers/a.fa.gz", "wb") as handle:
        handle.write(packed)
    for url in (
        f"zip://in/b.fa.gz::{tmp_path}/a.zip",
        f"tar://in/b.fa::{tmp_path}/a.tar.gz",
        "memory://readers/a.fa.gz",
    ):
        with open_stream(url) as stream:
            assert stream.read() == CONTENT
    for url in (f"zip://in/c.fa::{tmp_path}/a.zip", f"tar://in/c.fa::{tmp_path}/a.tar.gz"):
        assert refused(url).what == f"no such file: {url}"
    (tmp_path / "cut.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-30])
    assert "damaged or cut short" in refused(f"zip://in/b.fa.gz::{tmp_path}/cut.zip").what
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "a.tar.gz").read_bytes()[:-3000])
    assert "damaged or cut short" in refused(f"tar://in/b.fa::{tmp_path}/cut.tar.gz").what
    (tmp_path / "lfs.zip").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git-lfs" in refused(f"zip://in/b.fa.gz::{tmp_path}/lfs.zip").what


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html>404</html>", "HTML page"),
        (b"\xef\xbb\xbf\r\n\t<!-- a comment -->\n<HTML lang='en'>", "HTML page"),
        (b"<html>\r\n<head><title>502 Bad Gateway</title></head>", "HTML page"),
        (b"<?xml version='1.0'?><!DOCTYPE html PUBLIC '-//W3C//DTD XHTML'>", "HTML page"),
        (b"<?xml version='1.0'?>\n<Error><Code>NoSuchKey</Code></Error>", "XML"),
        (b"<uniprot xmlns='http://uniprot.org/uniprot'>", "XML"),
        (b"\x1f\x9d\x90", "Unix compress"),
        (b"PAR1\x15\x04\x15", "a Parquet file"),
    ],
)
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
def test_what_is_no_data_is_named(tmp_path, content, what, compress):
    path = tmp_path / "a.fa.gz"
    path.write_bytes(gzip.compress(content) if compress else content)
    error = refused(str(path))
    assert what in error.what
    assert str(path) in error.where


@pytest.mark.parametrize("text", [b"<rna>ACGU<rna> Is it stable?\n", b"PAR1,F2R\n", b"CRAM\n", b"BZh9K,1\n"])
def test_text_that_only_begins_like_something_else_is_read(tmp_path, text):
    """The authors' data wraps sequences in tags such as <rna>; genes are named PAR1."""
    (tmp_path / "a.txt").write_bytes(text)
    with open_stream(str(tmp_path / "a.txt")) as stream:
        assert stream.read() == text


def test_archives_without_a_named_member_and_double_compression(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b.fa", CONTENT)
    assert "zip://<member>::" in refused(str(tmp_path / "a.zip")).fix
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.zip", "a.zip")
    assert "tar://<member>::" in refused(str(tmp_path / "a.tar.gz")).fix
    (tmp_path / "b.gz").write_bytes(gzip.compress(gzip.compress(CONTENT)))
    assert "compressed twice" in refused(str(tmp_path / "b.gz")).what
    (tmp_path / "c.gz").write_bytes(b">a\nACGT\n")
    assert "named as gzip" in refused(str(tmp_path / "c.gz")).what


def test_an_absent_file_is_named_with_what_to_do(tmp_path, monkeypatch):
    for mirror, fix in (("", "POLYSOME_MIRROR"), (str(tmp_path), "POLYSOME_MIRROR=")):
        monkeypatch.setenv("POLYSOME_MIRROR", mirror)
        error = refused(f"{tmp_path}/absent.fa")
        assert error.what == f"no such file: {tmp_path}/absent.fa"
        assert fix in error.fix
        assert "cannot open unknown://a" in refused("unknown://a").what


def test_bytes_as_they_are_stored(tmp_path):
    packed = gzip.compress(CONTENT)
    (tmp_path / "a.gz").write_bytes(packed)
    with open_stream(str(tmp_path / "a.gz"), decompress=False) as stream:
        assert stream.hexdigest() == hashlib.sha256(packed).hexdigest()


def test_it_serves_where_a_binary_file_is_asked_for(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress("name\nä\nß\n".encode()))
    with open_stream(str(tmp_path / "a.csv.gz")) as stream:
        assert list(csv.reader(io.TextIOWrapper(stream, encoding="utf-8"))) == [["name"], ["ä"], ["ß"]]
    with open_stream(str(tmp_path / "a.csv.gz")) as stream:
        assert stream.readline() == b"name\n"
        assert pa.PythonFile(stream, mode="r").read(100) == "ä\nß\n".encode()


def test_over_http_missing_pages_and_broken_connections_are_named(tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/cut":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:5000])

        def do_HEAD(self):
            self.send_error(405)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert refused(f"{address}/absent").what == f"no such file: {address}/absent"
        assert "cannot be read on" in refused(f"{address}/cut").what
    finally:
        server.shutdown()
        server.server_close()
